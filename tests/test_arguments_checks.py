"""Flags that are refused, contradict each other, are missing, filled in or change nothing; scoring; help."""

import shlex

import pytest
from command_lines import parse

from xtremes_jax.arguments import parse_arguments, parse_evaluate_arguments, steps_between
from xtremes_jax.arguments.checks import NEEDS, check_launcher
from xtremes_jax.arguments.parse import FLAGS
from xtremes_jax.arguments.refused import REFUSED
from xtremes_jax.arguments.training import SCHEDULES
from xtremes_jax.errors import InputError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


# ---- refusals ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--lerning_rate 3", "Unknown flag --lerning_rate: did you mean learning_rate?"),
        ("--evaluation_strat steps", "Unknown flag --evaluation_strat: did you mean evaluation_strategy?"),
        ("--learn 3", "Unknown flag --learn"),  # no abbreviations
        ("--learning_rate", "expected one argument"),
        ("--learning_rate abc", 'must be a number, not "abc"'),
        ("--learning_rate nan", "not a finite number"),
        ("--learning_rate -1", "at least 0"),
        ("--seed 1.5", "whole number"),
        (f"--seed {2**32}", "at most 4.29497e"),
        ("--max_steps 1" + "0" * 400, "--max_steps is out of range"),
        ("--logging_nan_inf_filter False", "left out of the mean"),
        ("--per_device_train_batch_size 0", "at least 1"),
        ("--num_train_epochs 0", "greater than 0"),
        ("--mask_time_prob 1.5", "at most 1"),
        ("--hidden_dropout 1", "less than 1"),
        ("--fp16 maybe", "true or false"),
        ("--output_dir gs://bucket/run", "is no directory of this machine. Give one; checkpoints alone can lie in a"),
        ("--report_to tensorboard --logging_dir gs://bucket/run", "is no directory of this machine"),
        ("--do_eval conf.json", "true or false"),
        ("--lr_scheduler_type cosin", "did you mean cosine"),
        ("--report_to wandb", "Choose one of none, tensorboard, all"),
        ("--report_to none tensorboard", "none excludes"),
        ("--train_sampling_strategy sequential", "group_by_length, random"),
        ("--eval_strategy no --evaluation_strategy steps", "two names of one flag"),
        ("--torch_compile", "steps are compiled by XLA already"),
        ("--deepspeed ds.json", "--fsdp_devices"),
        ("--local_rank=0", "one process drives all devices"),
        ("--optim adafactor", "AdamW is the only optimizer"),
        ("--hub_strategy every_epoch", "Choose one of end, every_save, checkpoint, all_checkpoints"),
        ("--hub_revision dev", "main branch"),
        ("--fp16_opt_level O2", "O1"),
        ("--generation_config beams.json", "read from the model's directory"),
        ("--label_smoothing_factor 0.1", "is for translation"),
        ("--no_freeze_feature_encoder true", "belongs to no flag"),
    ],
)
def test_refused_flags(given, message):
    with pytest.raises(InputError, match=message):
        parse(given)


@pytest.mark.parametrize(
    "given",
    [
        "--torch_compile False", "--fsdp ''", "--local_rank -1", "--optim adamw_torch", "--hub_revision main",
        "--fp16_opt_level O1", "--ddp_find_unused_parameters False",
        "--remove_unused_columns True", "--use_auth_token", "--eval_accumulation_steps 1", "--deepspeed none",
        "--logging_nan_inf_filter True",
    ],
)  # fmt: skip
def test_refused_flags_are_accepted_at_the_value_that_asks_for_what_happens_anyway(given):
    assert parse(given) == parse()


def test_every_reason_makes_a_sentence():
    for name, refused in REFUSED.items():
        assert not refused.reason.endswith("."), name
        assert all(word == word.lower() for word in refused.accepted), name


# ---- contradictions, and what changes nothing ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--do_train False", "nothing to do"),
        ("--fp16 --bf16", "--fp16 and --bf16 exclude each other"),
        ("--warmup_steps 10 --warmup_ratio 0.1", "both set the warm-up"),
        ("--config_name tiny", "exclude each other"),
        ("--min_duration_in_seconds 30", "leaves no clip"),
        ("--max_batch_seconds 20", "may not hold the longest clip"),
        ("--max_batch_seconds 200 --max_duration_in_seconds none", "there is no limit"),
        ("--max_batch_seconds 200 --per_device_train_batch_size 8", "two ways to size a batch"),
        ("--max_eval_batch_seconds 200 --per_device_eval_batch_size 8", "two ways to size a batch"),
        ("--max_eval_batch_seconds 0", "greater than 0"),
        ("--max_steps 0", "trains nothing"),
        ("--gradient_checkpointing --remat_policy none", "contradict each other"),
        ("--eval_steps 1.5", "must be whole"),
        ("--metric_for_best_model f1", "no metric of mls"),
        ("--metric_for_best_model eval_wor", "did you mean wer"),
        ("--load_best_model_at_end", "--eval_strategy is no and --save_strategy is steps"),
        ("--load_best_model_at_end --eval_strategy epoch", "--eval_strategy is epoch and --save_strategy is steps"),
        ("--load_best_model_at_end --eval_strategy steps --eval_steps 300", "multiple"),
        ("--load_best_model_at_end --eval_strategy steps --eval_steps 0.2", "multiple"),
        ("--load_best_model_at_end --eval_strategy no --save_strategy no", "Set both"),
        ("--language xx", "different languages"),
        ("--task minds14", "does not go with"),
    ],
)
def test_contradictions(given, message):
    with pytest.raises(InputError, match=message):
        parse(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--task mls --do_train --output_dir o", "no model to start from"),
        ("--task mls --do_train --config_name tiny", "Add --output_dir"),
        ("--task mls --do_predict --config_name tiny --output_dir o", "random weights"),
        ("--do_train --config_name tiny --output_dir o", "Add --task"),
    ],
)
def test_what_is_missing(given, message):
    with pytest.raises(InputError, match=message):
        parse_arguments(shlex.split(given))


@pytest.mark.parametrize(("save", "evaluate"), [("600", "300"), ("0.6", "0.2"), ("0.3", "0.1"), ("1e-7", "1e-7")])
def test_checkpoints_may_be_rarer_than_evaluations(save, evaluate):
    training = parse(
        f"--load_best_model_at_end --eval_strategy steps --save_steps {save} --eval_steps {evaluate}"
    ).training
    assert (training.save_steps, training.eval_steps) == (float(save), float(evaluate))


def test_launchers_are_refused():
    check_launcher({"WORLD_SIZE": "8"})  # as clusters set it without a launcher
    check_launcher({"LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    with pytest.raises(InputError, match="process 3 of 8"):
        check_launcher({"LOCAL_RANK": "3", "WORLD_SIZE": "8"})


def test_what_is_left_open_is_filled_in():
    training = parse().training
    assert (training.remat_policy, training.data_seed, training.eval_steps) == ("none", 42, 500)
    assert (training.metric_for_best_model, training.greater_is_better, training.do_eval) == (None, None, False)
    training = parse("--eval_strategy epoch --save_strategy epoch --load_best_model_at_end --seed 7").training
    assert (training.metric_for_best_model, training.greater_is_better) == ("loss", False)
    assert (training.do_eval, training.data_seed) == (True, 7)
    assert parse("--gradient_checkpointing --remat_policy dots").training.remat_policy == "dots"
    assert parse("--logging_steps 20").training.eval_steps == 20
    assert parse("--metric_for_best_model eval_cer").training.greater_is_better is False
    data = parse("--task mls").data
    assert (data.task, data.dataset_config_name, data.language) == ("mls", "mls.all", "all")
    assert data.target_column_name == "transcription"


@pytest.mark.parametrize(
    ("given", "config", "note"),
    [
        ("--hub_model_id me/model", "mls.all", "--hub_model_id has no effect without --push_to_hub."),
        ("--hub_private_repo False", "mls.all", "--hub_private_repo has no effect without --push_to_hub."),
        (
            "--hub_strategy end --hub_always_push",
            "mls.all",
            "--hub_strategy and --hub_always_push have no effect without --push_to_hub.",
        ),
        ("--eval_split_name test", "mls.all", "--eval_split_name has no effect without --do_eval."),
        ("--max_predict_samples 5", "mls.all", "--max_predict_samples has no effect without --do_predict."),
        ("--per_lang_metrics False", "mls.all", "--per_lang_metrics has no effect without --do_eval or --do_predict."),
        ("--use_weighted_layer_sum", "mls.all", "--use_weighted_layer_sum has no effect in a task of recognition."),
        (
            "--ctc_zero_infinity False --final_dropout 0 --unk_token ? --chars_to_ignore",
            "minds14.all",
            "--ctc_zero_infinity, --final_dropout, --unk_token and --chars_to_ignore have no effect in a task of "
            "classification.",
        ),
        ("--unk_token ?", "covost2.all", "--unk_token has no effect in a task of translation."),
        (
            "--tokenizer_name_or_path x",
            "minds14.all",
            "--tokenizer_name_or_path has no effect in a task of classification.",
        ),
        (
            "--unk_token ? --tokenizer_name_or_path x",
            "mls.all",
            "--unk_token has no effect beside --tokenizer_name_or_path.",
        ),
        (
            "--group_by_length False --max_batch_seconds 60",
            "mls.all",
            "--group_by_length has no effect beside --max_batch_seconds, which groups clips by length.",
        ),
        ("--num_train_epochs 2 --max_steps 5", "mls.all", "--num_train_epochs has no effect beside --max_steps."),
        (
            "--warmup_steps 0 --lr_scheduler_type constant",
            "mls.all",
            "--warmup_steps has no effect without --lr_scheduler_type other than constant.",
        ),
        ("--ctc_beams 4", "mls.all", "--ctc_beams has no effect without --do_eval or --do_predict."),
        ("--ctc_beams 4 --do_eval", "covost2.all", "--ctc_beams has no effect in a task of translation."),
        ("--run_name a", "mls.all", "--run_name has no effect without --report_to tensorboard."),
        (
            "--logging_first_step --logging_strategy no",
            "mls.all",
            "--logging_first_step has no effect without --logging_strategy steps.",
        ),
        (
            "--do_train False --do_eval --learning_rate 0.1 --weight_decay 0 --seed 1",
            "mls.all",
            "--learning_rate, --weight_decay and --seed have no effect without --do_train.",
        ),
        (
            "--do_train False --do_eval --overwrite_output_dir --eval_steps 5 --hidden_dropout 0.1",
            "mls.all",
            "--overwrite_output_dir, --eval_steps and --hidden_dropout have no effect without --do_train.",
        ),
        ("--frontend_cache_dir x", "mls.all", "--frontend_cache_dir has no effect without --cache_frontend."),
    ],
)
def test_flags_without_effect_are_noted(given, config, note):
    # Flags are told of in any order.
    (found,) = parse(given, config).notes
    listed, _, reason = found.replace(" has no effect", " have no effect").partition(" have no effect")
    wanted, _, because = note.replace(" has no effect", " have no effect").partition(" have no effect")
    assert sorted(listed.replace(" and ", ", ").split(", ")) == sorted(wanted.replace(" and ", ", ").split(", "))
    assert reason == because


@pytest.mark.parametrize(
    "given",
    [
        "--group_by_length --max_batch_seconds 60",
        "--ctc_beams 8 --do_eval",
        "--eval_strategy epoch --save_strategy epoch --metric_for_best_model wer --save_total_limit 1",
        "--hub_token abc --seed 3 --report_to none --unk_token ? --max_steps -1 --num_train_epochs 2",
        "--hub_model_id none --logging_dir none",
    ],
)
def test_flags_with_an_effect_are_not(given):
    assert parse(given).notes == ()


def test_a_metric_without_scored_checkpoints_is_noted():
    (note,) = parse("--metric_for_best_model wer --eval_strategy epoch --save_strategy no").notes
    assert note.startswith("--metric_for_best_model has no effect without an --eval_strategy and a --save_strategy")
    (note,) = parse("--greater_is_better False --eval_strategy epoch --save_strategy epoch").notes
    assert note == "--greater_is_better has no effect without --metric_for_best_model or --load_best_model_at_end."
    assert "worst checkpoint" in parse("--metric_for_best_model wer --greater_is_better True").notes[-1]


def test_every_flag_of_training_says_what_it_needs():
    """A new flag that `evaluate` does not take has to say so too, or be one of those that decide what a run does."""
    deciding = {"config_name", "preprocessing_only", "do_train", "do_eval", "push_to_hub"}
    for name, flag in FLAGS.items():
        needs = flag.metadata["needs"]
        assert set(needs) <= set(NEEDS), name
        if not flag.metadata["scoring"] and name not in deciding:
            assert needs and needs[0] in ("train", "eval", "push"), name
    assert set(NEEDS) == {word for flag in FLAGS.values() for word in flag.metadata["needs"]}


@pytest.mark.parametrize("wanted", ["out", "out/checkpoints/5", "./out/../out/checkpoints", "true"])
def test_a_run_does_not_resume_from_what_it_overwrites(wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = "--overwrite_output_dir would delete the checkpoint that --resume_from_checkpoint .* leave out"
    with pytest.raises(InputError, match=message):
        parse(f"--overwrite_output_dir --resume_from_checkpoint {wanted}")
    assert parse(f"--resume_from_checkpoint {wanted}").training.resume_from_checkpoint == wanted
    assert parse("--overwrite_output_dir --resume_from_checkpoint elsewhere/checkpoints/5").notes == ()


def test_names_that_other_rooms_know_too():
    """`arguments` loads without JAX, so it cannot import these."""
    from xtremes_jax.models import DECODER_PRESETS, PRESETS
    from xtremes_jax.training import optimizer

    assert SCHEDULES == optimizer.SCHEDULES
    assert f"a preset ({', '.join(PRESETS)})" in FLAGS["config_name"].metadata["help"]
    assert f"a preset ({', '.join(DECODER_PRESETS)})" in FLAGS["decoder_config_name"].metadata["help"]


def test_steps_between():
    assert steps_between(500, 10_000) == 500
    assert [steps_between(share, 30) for share in (0.1, 0.11, 0.5, 0.001)] == [3, 4, 15, 1]


# ---- scoring ----


def test_evaluate_arguments():
    arguments = parse_evaluate_arguments(
        shlex.split(
            "--model_name_or_path run --dataset_name my/data --task fleurs-lang_id --predict_split_name validation "
            "--output_dir out --per_device_eval_batch_size 2 --bf16 --chars_to_ignore x --hub_token abc"
        )
    )
    assert arguments.data.predict_split_name == "validation"
    assert (arguments.training.do_predict, arguments.training.do_train) == (True, False)
    assert arguments.selection.task.name == "fleurs-lang_id"
    assert arguments.notes == ("--chars_to_ignore has no effect in a task of classification.",)
    assert arguments.training.hub_token == "abc"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--learning_rate 1", "--learning_rate is a flag of training"),
        ("--seed 1", "--seed is a flag of training"),
        ("--overwrite_output_dir", "--overwrite_output_dir is a flag of training"),
        ("--eval_split_name test", "--predict_split_name"),
        ("--do_train", "flag of training"),
        ("--config_name tiny", "flag of training"),
        ("--do_predict False", "nothing to do"),
        ("--torch_compile", "compiled by XLA"),
        ("--model_name_or_path none", "no model to score"),
        ("--output_dir none", "nowhere to write"),
        ("--max_eval_batch_seconds 9 --per_device_eval_batch_size 2", "two ways to size a batch"),
    ],
)
def test_evaluate_refuses_flags_of_training(given, message):
    with pytest.raises(InputError, match=message):
        parse_evaluate_arguments(shlex.split(f"--model_name_or_path run --task mls --output_dir out {given}"))


# ---- help and README ----


@pytest.mark.parametrize("program", [parse_arguments, parse_evaluate_arguments])
def test_help_lists_the_flags(capsys, program):
    with pytest.raises(SystemExit) as stopped:
        program(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name, flag in FLAGS.items():
        assert (f" --{name} " in shown) == (program is parse_arguments or flag.metadata["scoring"]), name
    assert "--deepspeed" not in shown


# ---- retrieval ----
