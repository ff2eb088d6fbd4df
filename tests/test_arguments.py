"""Flags: the reference commands as they stand, old and new names, and JSON files."""

import json
import shlex
from pathlib import Path

import pytest

from xtremes_jax.arguments import parse_arguments
from xtremes_jax.arguments.parse import FLAGS, SPELLINGS
from xtremes_jax.arguments.refused import REFUSED
from xtremes_jax.errors import InputError

BASE = "--model_name_or_path some/model --dataset_config_name mls.all --output_dir out --do_train"

MLS_COMMAND = """
    --model_name_or_path="facebook/wav2vec2-xls-r-300m"
    --dataset_name="google/xtreme_s"
    --dataset_config_name="mls.all"
    --eval_split_name="test"
    --output_dir="xtreme_s_xlsr_300m_mls"
    --overwrite_output_dir
    --num_train_epochs=100
    --per_device_train_batch_size=4
    --per_device_eval_batch_size=1
    --gradient_accumulation_steps=2
    --learning_rate="3e-4"
    --warmup_steps=3000
    --evaluation_strategy="steps"
    --target_column_name="transcription"
    --max_duration_in_seconds=20
    --save_steps=500
    --eval_steps=500
    --logging_steps=1
    --layerdrop=0.0
    --mask_time_prob=0.3
    --mask_time_length=10
    --mask_feature_prob=0.1
    --mask_feature_length=64
    --freeze_feature_encoder
    --gradient_checkpointing
    --fp16
    --group_by_length
    --do_train
    --do_eval
    --metric_for_best_model="wer"
    --greater_is_better=False
    --load_best_model_at_end
    --push_to_hub
"""

MINDS14_COMMAND = """
    --model_name_or_path="facebook/wav2vec2-xls-r-300m"
    --dataset_name="google/xtreme_s"
    --dataset_config_name="minds14.all"
    --eval_split_name="test"
    --output_dir="xtreme_s_xlsr_300m_minds14"
    --overwrite_output_dir
    --num_train_epochs=50
    --per_device_train_batch_size=32
    --per_device_eval_batch_size=8
    --gradient_accumulation_steps=1
    --learning_rate="3e-4"
    --warmup_steps=1500
    --evaluation_strategy="steps"
    --target_column_name="intent_class"
    --max_duration_in_seconds=30
    --save_steps=200
    --eval_steps=200
    --logging_steps=1
    --layerdrop=0.0
    --mask_time_prob=0.3
    --mask_time_length=10
    --mask_feature_prob=0.1
    --mask_feature_length=64
    --freeze_feature_encoder
    --gradient_checkpointing
    --fp16
    --group_by_length
    --do_train
    --do_eval
    --metric_for_best_model="f1"
    --greater_is_better=True
    --load_best_model_at_end
    --push_to_hub
"""

# Names that Transformers' TrainingArguments and Seq2SeqTrainingArguments had in 4.18 to 4.57 and lost by 5.23.
OLDER_NAMES = """
    _n_gpu adafactor dispatch_batches evaluation_strategy fp16_backend fp16_opt_level fsdp_min_num_params
    fsdp_transformer_layer_cls_to_wrap group_by_length half_precision_backend include_inputs_for_metrics
    include_tokens_per_second jit_mode_eval logging_dir mp_parameters no_cuda overwrite_output_dir past_index
    per_gpu_eval_batch_size per_gpu_train_batch_size push_to_hub_model_id push_to_hub_organization push_to_hub_token
    ray_scope save_safetensors sharded_ddp split_batches torchdynamo tpu_metrics_debug tpu_num_cores use_ipex
    use_legacy_prediction_loop use_mps_device warmup_ratio xpu_backend
"""

# Flags and defaults of the reference script, run_xtreme_s.py. Its --language is unset here, which means all.
REFERENCE_DEFAULTS = {
    "dataset_name": "google/xtreme_s",
    "train_split_name": "train",
    "eval_split_name": "validation",
    "predict_split_name": "test",
    "audio_column_name": "audio",
    "target_column_name": None,
    "chars_to_ignore": tuple(', ? . ! - ; : " “ % ‘ ” �'.split(" ")),
    "max_duration_in_seconds": 30.0,
    "min_duration_in_seconds": 0.0,
    "max_train_samples": None,
    "max_eval_samples": None,
    "max_predict_samples": None,
    "preprocessing_only": False,
    "preprocessing_num_workers": None,
    "overwrite_cache": False,
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "word_delimiter_token": "|",
    "per_lang_metrics": True,
    "tokenizer_name_or_path": None,
    "cache_dir": None,
    "freeze_feature_encoder": True,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "hidden_dropout": 0.0,
    "final_dropout": 0.0,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_feature_prob": 0.0,
    "mask_feature_length": 10,
    "layerdrop": 0.0,
    "ctc_zero_infinity": False,
    "ctc_loss_reduction": "mean",
    "language": None,
    "language_group": None,
    "task": None,
    "model_name_or_path": None,
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def parse(extra: str = ""):
    return parse_arguments(shlex.split(f"{BASE} {extra}"))


def transformers_defaults() -> dict[str, object]:
    """Flag -> default of the trainer in Transformers 5.23."""
    path = Path(__file__).parent / "golden" / "training_arguments.json"
    return json.loads(path.read_text())["defaults"]


# ---- the reference commands ----


def test_mls_command():
    arguments = parse_arguments(shlex.split(MLS_COMMAND))
    model, data, training = arguments.model, arguments.data, arguments.training
    assert model.model_name_or_path == "facebook/wav2vec2-xls-r-300m"
    assert (model.mask_time_prob, model.mask_feature_prob, model.mask_feature_length) == (0.3, 0.1, 64)
    assert (data.task, data.language, data.target_column_name) == ("mls", "all", "transcription")
    assert (data.eval_split_name, data.max_duration_in_seconds, data.group_by_length) == ("test", 20.0, True)
    assert (training.num_train_epochs, training.learning_rate, training.warmup_steps) == (100.0, 3e-4, 3000)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (4, 2)
    assert (training.eval_strategy, training.eval_steps, training.save_steps) == ("steps", 500, 500)
    assert (training.fp16, training.bf16, training.remat_policy) == (True, False, "full")
    assert (training.metric_for_best_model, training.greater_is_better) == ("wer", False)
    assert training.load_best_model_at_end and training.push_to_hub and training.overwrite_output_dir
    assert arguments.notes == ()


def test_minds14_command():
    arguments = parse_arguments(shlex.split(MINDS14_COMMAND))
    assert arguments.selection.task.name == "minds14"
    assert (arguments.training.metric_for_best_model, arguments.training.greater_is_better) == ("f1", True)
    assert arguments.notes == ()


def test_first_command_of_the_reference_has_steps_without_a_strategy():
    arguments = parse("--eval_steps=500 --save_steps=500 --do_eval")
    assert arguments.training.eval_strategy == "no"
    assert arguments.notes == ("--eval_steps has no effect without --eval_strategy steps.",)


# ---- names ----


def test_defaults_are_those_of_the_reference_script():
    assert {name: FLAGS[name].default for name in REFERENCE_DEFAULTS} == REFERENCE_DEFAULTS


def test_defaults_are_those_of_transformers():
    ours_differ = {
        # None there stands for false; the tests of each flag below say what ours mean.
        "gradient_checkpointing", "disable_tqdm",
            # None there stands for true: it belongs to translation, where nothing else can be scored.
            "predict_with_generate",
        # "none" there.
        "report_to",
    }  # fmt: skip
    for name, default in transformers_defaults().items():
        if name in FLAGS and name not in ours_differ:
            assert FLAGS[name].default == default, name


def test_every_flag_of_transformers_is_honoured_or_refused_with_a_reason():
    names = {*transformers_defaults(), *OLDER_NAMES.split()}
    assert len(names) > 150
    assert names - set(SPELLINGS) - set(REFUSED) == set()
    assert set(SPELLINGS) & set(REFUSED) == set()


def test_every_flag_has_one_sentence_of_help():
    for flag in FLAGS.values():
        assert flag.metadata["help"][0].isupper() and flag.metadata["help"].endswith("."), flag.name


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ("--evaluation_strategy epoch", "eval_strategy", "epoch"),
        ("--eval_strategy epoch", "eval_strategy", "epoch"),
        ("--eval-strategy epoch", "eval_strategy", "epoch"),
        ("--eval-strategy=epoch --evaluation_strategy epoch", "eval_strategy", "epoch"),
        ("--activation_checkpointing", "gradient_checkpointing", True),
        ("--train_sampling_strategy group_by_length", "group_by_length", True),
        ("--train_sampling_strategy random", "group_by_length", False),
        ("--no_cuda", "use_cpu", True),
        ("--per_gpu_train_batch_size 3", "per_device_train_batch_size", 3),
        ("--push_to_hub_token abc", "hub_token", "abc"),
        ("", "hub_private_repo", None),
        ("--hub_private_repo none", "hub_private_repo", None),
        ("--hub_private_repo", "hub_private_repo", True),
        ("--hub_private_repo False", "hub_private_repo", False),
        ("--freeze_feature_extractor False", "freeze_feature_encoder", False),
    ],
)
def test_old_and_new_names_are_one_flag(given, field, value):
    arguments = parse(given)
    assert getattr(getattr(arguments, FLAGS[field].group), field) == value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--fp16", True),
        ("--fp16 True", True),
        ("--fp16=true", True),
        ("--fp16 1", True),
        ("--fp16 False", False),
        ("--fp16=no", False),
        ("", False),
    ],
)
def test_booleans(given, expected):
    assert parse(given).training.fp16 is expected


def test_flags_that_are_on_by_default_can_be_negated():
    assert parse("--no_freeze_feature_encoder").model.freeze_feature_encoder is False
    assert parse("--no-per-lang-metrics").data.per_lang_metrics is False
    with pytest.raises(InputError, match="Unknown flag --no_fp16"):
        parse("--no_fp16")


def test_lists_and_none():
    data = parse("--chars_to_ignore , ? - ; --max_duration_in_seconds none").data
    assert data.chars_to_ignore == (",", "?", "-", ";")
    assert data.max_duration_in_seconds is None
    assert parse("--chars_to_ignore").data.chars_to_ignore == ()
    assert parse("--report_to none").training.report_to == ()
    assert parse("--report_to all").training.report_to == ("tensorboard",)


# ---- JSON ----


def write(folder, content) -> str:
    path = folder / "conf.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_json_file_and_flags_after_it(tmp_path):
    path = write(
        tmp_path,
        {
            "config_name": "tiny",
            "task": "mls",
            "output_dir": "out",
            "do_train": True,
            "evaluation_strategy": "epoch",
            "learning_rate": 1,
            "warmup_steps": 5,
            "chars_to_ignore": ["x"],
            "report_to": "tensorboard",
            "save_total_limit": None,
            "disable_tqdm": None,
            "local_rank": -1,
            "fsdp": [],
            "deepspeed": None,
        },
    )
    arguments = parse_arguments([path, "--eval_strategy", "steps", "--learning_rate", "0.5"])
    assert arguments.training.eval_strategy == "steps"
    assert arguments.training.learning_rate == 0.5
    assert arguments.training.warmup_steps == 5
    assert arguments.data.chars_to_ignore == ("x",)
    assert arguments.training.report_to == ("tensorboard",)
    assert arguments.training.save_total_limit is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lerning_rate": 1}, "conf.json: lerning_rate is unknown: did you mean learning_rate"),
        ({"learning_rate": "3e-4"}, 'conf.json: learning_rate must be a number, not "3e-4"'),
        ({"max_steps": 1.5}, "conf.json: max_steps must be a whole number, not 1.5"),
        ({"max_steps": True}, "conf.json: max_steps must be a whole number, not true"),
        ({"fp16": "true"}, 'conf.json: fp16 must be true or false, not "true"'),
        ({"fp16": 1}, "conf.json: fp16 must be true or false, not 1"),
        ({"output_dir": 3}, "conf.json: output_dir must be a string, not 3"),
        ({"chars_to_ignore": [1]}, r"conf.json: chars_to_ignore must be a list of strings, not \[1\]"),
        ({"eval_strategy": "no", "evaluation_strategy": "epoch"}, "two names of one flag"),
        ({"fsdp": "full_shard"}, "conf.json: fsdp full_shard cannot be honoured: parameters are sharded with"),
        ({"fsdp_config": {"x": 1}}, "conf.json: fsdp_config"),
        ([1], "must hold a JSON object, not a list"),
        ("{", "conf.json is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"learning_rate": 1%s}' % ("0" * 400), "conf.json: learning_rate inf is not a finite number"),
        ('{"learning_rate": -1%s}' % ("0" * 400), "conf.json: learning_rate -inf is not a finite number"),
        ('{"seed": 1%s}' % ("0" * 400), "conf.json: seed is out of range"),
        ('{"max_steps": 1%s}' % ("0" * 5000), "conf.json is not valid JSON"),
        ('{"learning_rate": NaN}', "not a finite number"),
    ],
)
def test_faults_of_a_json_file_are_named_with_the_file(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        parse_arguments([write(tmp_path, content), *shlex.split(BASE)])


def test_json_file_that_is_missing_or_out_of_place(tmp_path):
    with pytest.raises(InputError, match=r"absent.json cannot be read: No such file"):
        parse_arguments([str(tmp_path / "absent.json")])
    with pytest.raises(InputError, match="must come first"):
        parse_arguments(["--seed", "1", "conf.json"])
