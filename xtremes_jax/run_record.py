"""`run.json`: what a finished run is of and what it scored, written by train and evaluate, read by score."""

import importlib.metadata
import math
import platform
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtremes_jax import __version__
from xtremes_jax.arguments import DataArguments
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.benchmark import TaskRun
from xtremes_jax.evaluation.report import write_json
from xtremes_jax.run_files import RECORD
from xtremes_jax.small_files import UnusableFile, read_object
from xtremes_jax.tasks import TASKS

if TYPE_CHECKING:  # reading a record needs neither JAX nor the data's libraries
    from xtremes_jax.arguments import Arguments
    from xtremes_jax.corpus import Corpus
    from xtremes_jax.evaluation.predict import ScoredSplit

FORMAT = 2
_VERSIONS_OF = ("jax", "flax", "transformers", "datasets", "jiwer", "sacrebleu")
_LARGEST_BYTES = 4 * 2**20
_LONGEST_NAME = 64
_LARGEST_COUNT = 2**63 - 1
_LARGEST_RATE = 1e6
"""Of an error rate, which may well exceed 1; in points it has to stay a finite number."""
_ROLES = ("predict", "eval")
"""Of these the first that a run has is its result."""


def write_record(
    directory: Path, arguments: "Arguments", corpus: "Corpus", scored: "Mapping[str, ScoredSplit]"
) -> None:
    """Writes `run.json` when a run has ended.

    Scores of splits that this run did not touch stay as an earlier run of the same model and task has left them.

    Args:
        directory: of the run.
        arguments: of the run.
        corpus: the splits, under the roles of `scored`.
        scored: "eval" and "predict", as far as they were scored.
    """
    data, selection = arguments.data, arguments.selection
    record = {
        "format": FORMAT,
        "task": selection.task.name,
        "dataset": data.dataset_name,
        "config": data.dataset_config_name,
        "language": selection.language,
        "language_group": selection.language_group,
        "target_column": selection.target_column,
        "chars_to_ignore": list(data.chars_to_ignore or ()) if selection.task.predicts_text else None,
        "key_language": selection.key_language,
        "distractors": _distractors(data),
        "model": arguments.model.model_name_or_path or arguments.model.config_name,
        "target_lang": arguments.model.target_lang,
        "trained": arguments.training.do_train,
        "synthetic": corpus.synthetic,
        "primary_metrics": list(selection.task.metrics),
        "versions": _versions(),
    }
    record["scores"] = _kept(_earlier(directory / RECORD), record) | {
        role: _scores(arguments, corpus, role, split) for role, split in scored.items()
    }
    write_json(directory / RECORD, record)


_SAME = (
    "format task dataset config language language_group target_column chars_to_ignore key_language distractors model "
    "target_lang synthetic"
).split()
"""What two runs have in common whose scores may stand in one record."""


def _kept(before: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The scores of an earlier record that are of the same model and data as the new one's."""
    scores = before.get("scores")
    before = {"target_lang": None} | before  # which records did not always name
    if not isinstance(scores, dict) or any(name not in before or before[name] != record[name] for name in _SAME):
        return {}
    return {role: scores[role] for role in _ROLES if role in scores}


def _distractors(data: DataArguments) -> dict[str, str | None] | None:
    if data.distractor_dataset_name is None:
        return None
    return {name: getattr(data, f"distractor_{name}") for name in ("dataset_name", "dataset_config_name", "split_name")}


def _versions() -> dict[str, str]:
    versions = {"xtremes_jax": __version__, "python": platform.python_version()}
    return versions | {name: importlib.metadata.version(name) for name in _VERSIONS_OF}


def _earlier(path: Path) -> dict[str, Any]:
    """The record that is there, or nothing if there is none or it is no record."""
    try:
        return _read_object(path)
    except InputError:
        return {}


def _scores(arguments: "Arguments", corpus: "Corpus", role: str, scored: "ScoredSplit") -> dict[str, Any]:
    data, split = arguments.data, corpus.splits[role]
    most = data.max_predict_samples if role == "predict" else data.max_eval_samples
    total = len(split.raw.clip_names)
    return {
        "split": split.name,
        "samples": scored.metrics["samples"],
        "unscored": scored.unscored,
        # The split was cut, or happens to be just so long.
        "limited_to": most if most is not None and total >= most else None,
        "metrics": scored.scores.average | scored.scores.groups,
        "per_language": scored.scores.per_language if data.per_lang_metrics else {},
        "clips_per_language": scored.scores.counts,
    }


def read_run(directory: str | Path) -> TaskRun:
    """The result of a finished run: of its prediction split, or else of its evaluation split.

    Raises:
        InputError: There is no such directory, no finished run in it, or its `run.json` is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory. Give the --output_dir of finished runs.")
    path = directory / RECORD
    if not path.is_file():
        raise InputError(_without_record(directory))
    record = _read_object(path)
    if record.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {_shown(record.get('format'))}, this version reads {FORMAT}. Score the model anew with "
            "python -m xtremes_jax.evaluate."
        )
    task, scores = record.get("task"), record.get("scores")
    if not isinstance(task, str) or task not in TASKS:
        raise _damaged(path, f"its task is {_shown(task)}, which is none of {', '.join(TASKS)}")
    role = next((role for role in _ROLES if isinstance(scores, dict) and role in scores), None)
    if role is None:
        raise InputError(
            f"{directory} holds a run that scored no split. Run it again with --do_predict: what is done is not "
            "repeated."
        )
    return _parse(path, task, scores[role], record)


def _without_record(directory: Path) -> str:
    runs = sorted(path.parent.name for path in directory.glob(f"*/{RECORD}"))
    if runs:
        return f"{directory} holds runs and is none itself. Give them one by one: {directory}/{{{','.join(runs)}}}."
    if (directory / "checkpoints").is_dir() or (directory / "model.safetensors").is_file():
        return (
            f"{directory} has no {RECORD}: its run is not finished, or was made by an older version. Give its command "
            "again (it goes on from its last checkpoint), or score the model with python -m xtremes_jax.evaluate."
        )
    return f"{directory} has no {RECORD}, so no results. Give the --output_dir of finished runs of train or evaluate."


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, largest=_LARGEST_BYTES)
    except UnusableFile as error:
        raise _damaged(path, f"it {error}") from error


def _parse(path: Path, task: str, scores: Any, record: dict[str, Any]) -> TaskRun:
    synthetic = record.get("synthetic")
    if not isinstance(scores, dict) or not isinstance(synthetic, bool):
        raise _damaged(path, "it does not say what was scored, or whether the speech is synthetic")
    split, limited, unscored = scores.get("split"), scores.get("limited_to"), scores.get("unscored")
    if not (_is_name(split) and _is_count(unscored) and (limited is None or _is_count(limited))):
        raise _damaged(path, "its split or its number of clips is none")
    languages = scores.get("per_language")
    if not isinstance(languages, dict) or not all(_is_name(name) for name in languages):
        raise _damaged(path, "its languages have no usable names")
    parsed = {name: _metrics(path, task, values) for name, values in languages.items()}
    return TaskRun(
        source=str(path.parent), task=task, split=split, metrics=_metrics(path, task, scores.get("metrics")),
        per_language=parsed, limited=limited is not None, unscored=unscored, synthetic=synthetic,
        **_data_of(path, task, record),
    )  # fmt: skip


def _data_of(path: Path, task: str, record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the data beside their languages, as `TaskRun` has it."""
    dataset, column, keys = (record.get(name) for name in ("dataset", "target_column", "key_language"))
    if not (isinstance(dataset, str) and dataset and isinstance(column, str) and column):
        raise _damaged(path, "it does not say which data set or which column was scored")
    if not (_is_name(keys) if TASKS[task].kind == "retrieval" else keys is None):
        raise _damaged(path, f"the language of its keys is {_shown(keys)}")
    ignored = record.get("chars_to_ignore")
    if TASKS[task].predicts_text and not (isinstance(ignored, list) and all(isinstance(text, str) for text in ignored)):
        raise _damaged(path, "it does not say which characters were left out of the references")
    usual = DataArguments.chars_to_ignore
    return {
        "dataset": dataset,
        "target_column": column,
        "other_cleaning": TASKS[task].predicts_text and set(ignored) != set(usual),
        "key_language": keys,
        "distractors": record.get("distractors") is not None,
    }


def _metrics(path: Path, task: str, values: Any) -> dict[str, float]:
    """The scores of a split or of a language; each a finite number that its metric can have."""
    if not isinstance(values, dict):
        raise _damaged(path, "its metrics are no object")
    for name, value in values.items():
        if not _is_name(name):
            raise _damaged(path, f"it names a metric {_shown(name)}")
        if not _is_finite(value):
            raise _damaged(path, f"its {name} is {_shown(value)}, which is no finite number")
        # sacrebleu's rounding may exceed 100.
        most = {"wer": _LARGEST_RATE, "cer": _LARGEST_RATE}.get(name, 100.001 if name.startswith("bleu") else 1.0)
        if not 0 <= value <= most:
            raise _damaged(path, f"its {name} is {value:g}, which it cannot be")
    lacking = [name for name in TASKS[task].metrics if name not in values]
    if lacking:
        raise _damaged(path, f"it has no {', '.join(lacking)}, which {task} is scored by")
    return {name: float(value) for name, value in values.items()}


def _is_name(value: Any) -> bool:
    """Whether it can be printed in a table: it is short, and holds nothing that a terminal would obey."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _shown(value: Any) -> str:
    """A value from the file, short and with nothing that a terminal would obey."""
    text = reprlib.repr(value).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 40 else text[:40] + "…"


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is damaged: {reason}. Score the model anew with python -m xtremes_jax.evaluate, or leave it out."
    )
