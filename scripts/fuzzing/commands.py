"""Hostile arguments, on the command line and in JSON files, and hostile records of finished runs."""

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.mutate import OUTSIDE, change_bytes, hostile_value, json_bytes, to_json
from fuzzing.reader import Place, Reader, require
from xtremes_jax import score
from xtremes_jax.arguments import Arguments, DataArguments, describe, parse_arguments, parse_evaluate_arguments
from xtremes_jax.arguments.parse import FLAGS, SPELLINGS
from xtremes_jax.arguments.refused import REFUSED
from xtremes_jax.data.sources import open_source
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.benchmark import gather
from xtremes_jax.run_record import FORMAT, read_run
from xtremes_jax.starting import starting_point
from xtremes_jax.tasks import TASKS

SECRET = "hf_" + "Secret0fNobody" * 2
_BASE = {"task": "fleurs-asr", "dataset_name": "data", "config_name": "tiny", "output_dir": "out", "do_train": True,
         "max_steps": 10, "learning_rate": 1e-4, "per_device_train_batch_size": 4, "eval_strategy": "steps",
         "eval_steps": 5, "seed": 3, "chars_to_ignore": [",", "."], "max_duration_in_seconds": 20.0}  # fmt: skip
_WORDS = (
    "", " ", "-1", "0", "1", "0.5", "1e400", "nan", "inf", "-inf", "9" * 5000, "9" * 25, "0x10", "1_000", "１２",
    "true", "no", "None", "\0", "a\0b", "\udcff", "~", "~nobody-of-this-name", "/", ".", "..", OUTSIDE, "a" * 5000,
    "/dev/null", "/proc/self/mem", "pipe.csv", "loop", "loop/x", "[", "(?P<", "{}", "--", "-", "--x", "%s", "é", "mls",
    "steps", "a/b/c", "C:\\x", "data", "file.json", "folder.csv", "file.csv", "file:///dev/zero", "s3://",
    "://", "demo\0",
)  # fmt: skip


_PATHS = ("model_name_or_path", "config_name", "decoder_name_or_path", "decoder_config_name", "tokenizer_name_or_path",
          "dataset_name", "data_dir", "output_dir", "cache_dir", "logging_dir", "resume_from_checkpoint",
          "distractor_dataset_name", "compilation_cache_dir", "frontend_cache_dir")  # fmt: skip


def _value(random: Random, name: str) -> str:
    """A word for a flag, of its kind more often than not."""
    flag = FLAGS.get(SPELLINGS.get(name, ""))
    if flag is None or random.random() < 0.25:
        return random.choice(_WORDS)
    if flag.kind is bool:
        return random.choice(("true", "false"))
    if flag.kind in (int, float):
        return random.choice(("-1", "0", "1", "2", "0.5", "100", "1e9", "2147483648", "1e-9", str(flag.default)))
    return random.choice((*flag.metadata["choices"],) or _WORDS)


def hostile_arguments(random: Random) -> tuple[list[str], dict[str, Any]]:
    """A command line, and flags for the JSON file that it may start with."""
    names = [*FLAGS] * 8 + [*SPELLINGS, *REFUSED, *(f"no_{name}" for name in FLAGS)]
    argv: list[str] = []
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        name = random.choice((_PATHS, names)[random.random() < 0.5])
        if random.random() < 0.03:
            name = random.choice(("x", "", "learning-rate", "help=1"))
        words = [_value(random, name) for _ in range(random.choice((1, 1, 1, 1, 1, 1, 1, 0, 2)))]
        joined = len(words) == 1 and random.random() < 0.5
        argv += [f"--{name}={words[0]}"] if joined else [f"--{name}", *words]
    if random.random() < 0.05:
        argv.insert(random.randrange(len(argv) + 1), random.choice(_WORDS))
    content = copy.deepcopy(_BASE)
    if random.random() < 0.3:
        name = random.choice(names)
        content[name] = random.choice((hostile_value(random), _value(random, name), 1, 0.5, True, None, ["x"]))
    return argv, content


def _make_arguments(random: Random, place: Place) -> None:
    argv, content = hostile_arguments(random)
    folder = place.folder
    if random.random() < 0.6:
        data = json_bytes(random, content) if random.random() < 0.5 else to_json(content).encode("utf-8", "replace")
        (folder / "conf.json").write_bytes(data)
        argv.insert(0, "conf.json")
    else:
        flags = [f"--{name}" + (f"={value}" if not isinstance(value, list) else "") for name, value in _BASE.items()]
        if any(word.startswith("--model_name_or_path") for word in argv):
            flags.remove("--config_name=tiny")
        argv = [*random.sample(flags, random.choice((len(flags), len(flags) - 1))), *argv]
    if random.random() < 0.1:
        argv[:0] = [random.choice(("absent.json", "pipe.json", "loop.json", "folder.json", "zero.json", "\0.json"))]
    (folder / "argv.txt").write_text(json.dumps(argv), encoding="ascii")
    for name in ("folder.json", "folder.csv", "data"):
        (folder / name).mkdir()
    for name in ("file.csv", "data/train.csv", "data/validation.csv"):
        (folder / name).write_text("path,transcription\na.wav,a\n", encoding="utf-8")
    (folder / "file.json").write_text("{}", encoding="utf-8")
    for name in ("pipe.json", "pipe.csv"):
        os.mkfifo(folder / name)
    for name in ("loop", "loop.json"):
        os.symlink(name, folder / name)
    os.symlink("/dev/zero", folder / "zero.json")


def _read_arguments(random: Random, place: Place) -> None:
    """As train and evaluate do, up to the model and the data that are named."""
    os.chdir(place.folder)
    argv = json.loads((place.folder / "argv.txt").read_text(encoding="ascii"))
    parse = parse_arguments if random.random() < 0.8 else parse_evaluate_arguments
    try:
        check_arguments(parse(argv))
    except SystemExit as error:  # after --help
        require(error.code == 0, error)


def check_arguments(arguments: Arguments) -> None:
    """Whether what was parsed is of its types, and what it names can be looked for."""
    model, data, training = arguments.model, arguments.data, arguments.training
    require(isinstance(training.output_dir, str) and training.seed is not None, training)
    require(0 <= training.learning_rate < float("inf"), training)
    require(training.max_steps >= -1 and training.per_device_train_batch_size >= 1, training)
    shown = json.dumps(describe(arguments), allow_nan=False)
    require(training.hub_token is None or "hub_token" not in shown, "the token is shown")
    starting_point(model, translation=None, token=training.hub_token)
    if data.dataset_name not in ("demo", "google/xtreme_s"):
        open_source(data, arguments.selection, ["train"], None)


def _record() -> dict[str, Any]:
    values = {"wer": 0.25, "cer": 0.1, "loss": 1.5e-1}
    scores = {"split": "test", "limited_to": None, "unscored": 0, "metrics": dict(values),
              "per_language": {"nl": dict(values), "de": dict(values)}}  # fmt: skip
    return {"format": FORMAT, "task": "mls", "dataset": "google/xtreme_s", "config": "mls.all", "language": "all",
            "language_group": None, "target_column": "transcription",
            "chars_to_ignore": list(DataArguments.chars_to_ignore),
            "key_language": None, "distractors": None, "model": "m", "trained": True, "synthetic": False,
            "primary_metrics": ["wer", "cer"], "versions": {}, "scores": {"predict": scores}}  # fmt: skip


def _make_record(random: Random, place: Place) -> None:
    path = place.folder / "run.json"
    value = _record()
    kind = random.random()
    if kind < 0.02:
        os.symlink(random.choice(("run.json", "/dev/zero", OUTSIDE)), path)
    elif kind < 0.03:
        path.mkdir()
    elif kind < 0.15:
        path.write_bytes(change_bytes(random, json.dumps(value).encode()))
    else:
        value["task"] = random.choice(("mls", "mls", *TASKS))
        path.write_bytes(json_bytes(random, value))


def _read_record(random: Random, place: Place) -> None:
    check_records([place.folder])


def check_records(folders: Sequence[Path]) -> None:
    """Reads finished runs and prints them in every format; what is printed has to be harmless."""
    rows = gather([read_run(folder) for folder in folders])
    for show in score.FORMATS.values():
        text = show(rows)
        require("\x1b" not in text and "nan" not in text.lower().split(), text)
        text.encode("utf-8")
    require("average" in json.loads(score.as_json(rows)), rows)


def check_secret(argv: Sequence[str]) -> None:
    """Whatever is wrong with a command line that holds `SECRET`, no message repeats it."""
    try:
        arguments = parse_arguments(argv)
    except InputError as error:
        require(SECRET.lower() not in str(error).lower(), error)
    else:
        require(SECRET not in json.dumps(describe(arguments)) + " ".join(arguments.notes), argv)


READERS = {
    "arguments": Reader("arguments", _make_arguments, _read_arguments, names_file=False),
    "record": Reader("record", _make_record, _read_record),
}
