"""Flags that belong to one kind of task: retrieval, translation, and windows in recognition."""

import json
import shlex

import pytest
from command_lines import BASE, parse

from xtremes_jax.arguments import parse_arguments, parse_evaluate_arguments
from xtremes_jax.arguments.parse import FLAGS
from xtremes_jax.errors import InputError


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    "flag",
    [
        "--retrieval_loss contrastive", "--retrieval_margin 0.1", "--retrieval_negatives 3", "--embedding_dim 8",
        "--key_language en", "--write_embeddings", "--distractor_dataset_name demo",
        "--distractor_dataset_config_name mls.en", "--distractor_split_name test",
    ],
)  # fmt: skip
def test_flags_of_retrieval_are_refused_in_other_tasks(flag):
    with pytest.raises(InputError, match=f"{flag.split()[0]} is for retrieval, not for mls.*--task fleurs-retrieval"):
        parse(flag)
    if FLAGS[flag.split()[0].removeprefix("--")].metadata["scoring"]:
        with pytest.raises(InputError, match="is for retrieval"):
            parse_evaluate_arguments(
                shlex.split(f"--model_name_or_path x --output_dir y --dataset_config_name minds14.all {flag}")
            )


def test_a_null_in_a_json_file_is_no_flag_of_retrieval(tmp_path):
    nothing = {name: None for name, flag in FLAGS.items() if "retrieval" in flag.metadata["needs"]}
    assert len(nothing) > 5
    file = tmp_path / "flags.json"
    file.write_text(json.dumps({"task": "mls", "config_name": "tiny", "output_dir": "o", "do_train": True} | nothing))
    assert parse_arguments([str(file)]).selection.task.name == "mls"


RETRIEVAL = "--task fleurs-retrieval --do_predict"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--retrieval_margin 0.1", "belongs to --retrieval_loss margin, but the loss is contrastive"),
        ("--retrieval_negatives 5", "belongs to --retrieval_loss margin"),
        ("--retrieval_loss hinge", "contrastive, margin"),
        ("--retrieval_loss margin --retrieval_margin 0", "greater than 0"),
        ("--retrieval_loss margin --retrieval_negatives 0", "at least 1"),
        ("--embedding_dim 0", "at least 1"),
        ("--distractor_split_name train", "needs --distractor_dataset_name"),
        ("--distractor_dataset_config_name mls.en", "needs --distractor_dataset_name"),
        ("--distractor_dataset_name google/xtreme_s", "has many configs. Choose one .* such as mls.en"),
        ("--dataset_name demo --distractor_dataset_name demo", "right answers would be among the distractors"),
        (
            "--dataset_name ./own --distractor_dataset_name own --distractor_dataset_config_name fleurs.en_us",
            "its split test is what is scored",
        ),
        (
            "--do_eval --distractor_dataset_name google/xtreme_s --distractor_dataset_config_name fleurs.en_us "
            "--distractor_split_name validation",
            "its split validation is what is scored",
        ),
        ("--max_batch_seconds 60", "the same number of pairs in every batch"),
        ("--dataloader_drop_last", "no sentence comes twice in one"),
        ("--per_device_train_batch_size 7", "a pair for retrieval is two clips"),
        ("--metric_for_best_model accuracy", "Choose one of loss, p_at_1, p_at_5, mrr, xsim_error"),
    ],
)
def test_what_retrieval_cannot_honour_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        parse(f"{RETRIEVAL} {given}", config="fleurs.all")


def test_what_retrieval_can_honour_is_taken():
    given = "--retrieval_loss margin --retrieval_margin 0.1 --retrieval_negatives 5 --embedding_dim 64 "
    given += "--key_language de --write_embeddings --use_weighted_layer_sum --distractor_dataset_name x "
    given += "--distractor_split_name test --distractor_dataset_config_name mls.de"
    arguments = parse(f"{RETRIEVAL} {given}", config="fleurs.all")
    assert arguments.notes == () and arguments.selection.key_language == "de"
    for given in (
        "--dataset_name demo --distractor_dataset_name demo --distractor_split_name validation",
        "--dataset_name demo --distractor_dataset_name demo --distractor_dataset_config_name mls.all",
        "--distractor_dataset_name google/xtreme_s --distractor_dataset_config_name mls.en",
    ):
        assert parse(f"{RETRIEVAL} {given}", config="fleurs.all").notes == ()
    arguments = parse("--task fleurs-retrieval --write_embeddings --ctc_zero_infinity True", config="fleurs.all")
    assert arguments.notes == (
        "--write_embeddings has no effect without --do_eval or --do_predict.",
        "--ctc_zero_infinity has no effect in a task of retrieval.",
    )


@pytest.mark.parametrize(("metric", "rises"), [("p_at_1", True), ("mrr", True), ("xsim_error", False), ("loss", False)])
def test_direction_of_retrievals_metrics(metric, rises):
    given = f"{RETRIEVAL} --eval_strategy epoch --save_strategy epoch --metric_for_best_model {metric}"
    assert parse(given, config="fleurs.all").training.greater_is_better is rises


TRANSLATE = "--task covost2 --output_dir out --model_name_or_path me/model"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--do_predict --decoder_config_name tiny", "--decoder_config_name joins parts that have not been trained"),
        ("--do_predict --add_adapter True", "--add_adapter joins parts"),
        ("--do_train --do_predict --predict_with_generate False", "leaves nothing to score"),
    ],
)
def test_translation_refuses_what_has_no_outcome(given, message):
    with pytest.raises(InputError, match=message):
        parse_arguments(f"{TRANSLATE} {given}".split())


def test_limits_of_translations_count_without_scoring_too():
    given = "--do_train --predict_with_generate False --generation_num_beams 4 --generation_max_length 90"
    notes = parse_arguments(f"{TRANSLATE} {given}".split()).notes
    assert not any("generation_" in note for note in notes)


# ---- windows ----


def test_strides_are_one_number_or_two(tmp_path):
    assert parse("--chunk_length_s 20 --do_eval").training.stride_length_s is None
    assert parse("--chunk_length_s 20 --stride_length_s 4 --do_eval").training.stride_length_s == (4.0,)
    assert parse("--chunk_length_s 20 --stride_length_s 4 2.5 --do_eval").training.stride_length_s == (4.0, 2.5)
    for written, read in ((4, (4.0,)), ([4, 0.5], (4.0, 0.5))):
        path = tmp_path / "flags.json"
        path.write_text(json.dumps({"chunk_length_s": 20, "stride_length_s": written}))
        assert parse_arguments([str(path), *shlex.split(f"{BASE} --task mls")]).training.stride_length_s == read


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--stride_length_s 4", "needs --chunk_length_s"),
        ("--chunk_length_s 0", "greater than 0"),
        ("--chunk_length_s 20 --stride_length_s -1", "-1 is out of range: it must be at least 0"),
        ("--chunk_length_s 20 --stride_length_s 1 inf", "inf is not a finite number"),
        ("--chunk_length_s 20 --stride_length_s some", 'must be a number, not "some"'),
        ("--chunk_length_s 20 --stride_length_s", "give one number for both ends of a window, or left and right"),
        ("--chunk_length_s 20 --stride_length_s 1 1 1", "give one number for both ends of a window, or left and right"),
        ("--chunk_length_s 5 --stride_length_s 3", "leaves nothing of windows of 5 s"),
        ("--chunk_length_s 5 --stride_length_s 4 1", "4 1 leaves nothing of windows of 5 s"),
    ],
)
def test_windows_of_which_nothing_is_left_are_refused(given, message):
    with pytest.raises(InputError) as error:
        parse(f"{given} --do_eval")
    assert message in str(error.value)


@pytest.mark.parametrize("flag", ["--chunk_length_s 20", "--stride_length_s 4"])
@pytest.mark.parametrize("task", ["covost2", "minds14", "fleurs-lang_id", "fleurs-retrieval"])
def test_windows_are_refused_where_there_are_no_logits_to_join(flag, task):
    with pytest.raises(InputError, match=f"{flag.split()[0]} joins windows on the logits of CTC, which {task}, a task"):
        parse_evaluate_arguments(shlex.split(f"--model_name_or_path x --output_dir out --task {task} {flag}"))
