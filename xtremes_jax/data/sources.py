"""From the flags to the splits of a run: where the rows come from, which of them, and in which language each one is.

`--dataset_name` is a hub id, a directory, a `save_to_disk` directory, a manifest, `google/xtreme_s` or `demo`; each
is opened as a `Repository` of configs and splits by the file that knows it. What is common to all is here: the
choice of configs and languages, the check of columns, labels and sizes. Conventions are those of `run_xtreme_s.py`.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from xtremes_jax.arguments import DataArguments
from xtremes_jax.data.audio import stored_source
from xtremes_jax.data.babel import open_babel
from xtremes_jax.data.manifest import SUFFIXES, manifest_configs, open_manifest
from xtremes_jax.data.repository import (
    END,
    START,
    SYNTHETIC_MARKER,
    Repository,
    choose,
    open_repository,
    open_saved,
    saved_configs,
)
from xtremes_jax.data.rows import Part, labels_of, part_of, same_columns
from xtremes_jax.data.xtreme_s import open_xtreme_s
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import TASKS, XTREME_S, Selection, direction, is_key_language, select_task

logger = logging.getLogger(__name__)

DEMO = "demo"
"""The value of `--dataset_name` that stands for the embedded corpus."""


@dataclass(frozen=True)
class SplitRequest:
    """A split that a run needs."""

    name: str
    """Its name in the data, from `--train_split_name` and the like."""
    max_samples: int | None = None
    """Use only the first so many rows."""
    flag: str = "--train_split_name"
    """The flag that named it, for messages."""


@dataclass(frozen=True)
class RawSplit:
    """The rows of one split, as they were found: nothing decoded, cleaned or left out."""

    name: str
    """The name in the data, such as `validation`."""
    dataset: datasets.Dataset
    """The rows; the audio column holds `{"bytes": …, "path": …}`."""
    audio_column: str
    target_column: str | None
    languages: list[str]
    """Language of each row, as the data spell it."""
    clip_names: list[str]
    """What a person knows each clip by: its path or id."""
    label_names: list[str] | None
    """Names of the classes by class id, the same for all splits of a run; None where the target is text."""
    synthetic: bool = False
    """Whether the speech is synthetic, which has to be said wherever a result is shown."""

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def _clips(self) -> datasets.Dataset:
        return self.dataset.select_columns([self.audio_column]).with_format("arrow")

    @cached_property
    def _segments(self) -> np.ndarray | None:
        """`[rows, 2]` float64 seconds, NaN where the clip is all of its recording; None where all of them are."""
        if START not in self.dataset.column_names:
            return None
        return np.array([self.dataset[START][:], self.dataset[END][:]], np.float64).T

    def stored(self, rows: Sequence[int] | range) -> Iterator[dict[str, Any] | None]:
        """The audio column of some rows, one after the other; rows that follow each other are found much faster.

        What it gives goes to `audio.stored_source`.
        """
        for value in self._clips[rows if isinstance(rows, range) else list(rows)][self.audio_column]:
            yield value.as_py()

    def audio(self, row: int) -> bytes | Path:
        """Encoded audio of a row: the contents of an audio file, or the path of one. See also `segment`.

        Raises:
            InputError: The row has neither, or its remote file cannot be read.
        """
        return stored_source(next(self.stored(range(row, row + 1))))

    def segment(self, row: int) -> tuple[float, float] | None:
        """(start, end) in seconds, for a row that is a stretch of the recording `audio` gives; None for all of it."""
        if self._segments is None or np.isnan(self._segments[row, 0]):
            return None
        start, end = self._segments[row].tolist()
        return start, end

    def for_workers(self) -> "RawSplit":
        """The same rows with nothing but their audio: what worker processes get."""
        columns = [name for name in (self.audio_column, START, END) if name in self.dataset.column_names]
        return replace(self, dataset=self.dataset.select_columns(columns), languages=[], clip_names=[])

    def targets(self) -> list[str | None] | list[int | None]:
        """What to predict for each row: text, or a class id (a place in `label_names`).

        None where it is null or negative. A number that is no class of a `ClassLabel` column is given as it is where
        it cannot be mistaken for a place in `label_names`, else as None.
        """
        values = self.dataset[self.target_column][:]
        if self.label_names is None:
            return values
        ids = {name: number for number, name in enumerate(self.label_names)}
        kind = self.dataset.features[self.target_column]
        if isinstance(kind, datasets.ClassLabel):  # its own order may be another where one split is text
            own = [ids[name] for name in kind.names]
            return [None if value is None or value < 0 else _class_id(value, own, len(ids)) for value in values]
        return [None if value is None else ids[str(value)] for value in values]


def _class_id(value: int, own: Sequence[int], classes: int) -> int | None:
    if value < len(own):
        return own[value]
    return value if value >= classes else None


def load_splits(
    data: DataArguments,
    selection: Selection,
    wanted: Mapping[str, SplitRequest],
    cache_dir: str | None = None,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, RawSplit]:
    """Finds the rows of each split a run needs.

    Args:
        data: The flags about data.
        selection: Task, languages and target column, from `select_task`.
        wanted: The splits, under the run's own names (`train`, `eval`, `predict`).
        cache_dir: Where `datasets` and the demo corpus keep their files; None for their own defaults.
        beat: Called when a config's split has been found, as a sign of life.

    Returns:
        The splits, under the same names as `wanted`.

    Raises:
        InputError: Unknown data, config, language, split or column; a column of the wrong type; a split without rows;
            splits whose classes differ. With several languages, all that fail are named at once.
    """
    source, synthetic = open_source(data, selection, [request.name for request in wanted.values()], cache_dir)
    configs = choose_configs(source, selection)
    splits = {}
    for role, request in wanted.items():
        parts = _load_parts(source, configs, request, data, selection, beat)
        splits[role] = _join(parts, request, data.audio_column_name, selection)
    splits = _with_labels(splits, selection)
    for split in splits.values():
        logger.info(
            "Split %s: %d clips (%s)%s.", split.name, len(split),
            ", ".join(f"{language} {count}" for language, count in Counter(split.languages).items()),
            ", SYNTHETIC speech" if synthetic else "",
        )  # fmt: skip
    return {role: replace(split, synthetic=synthetic) for role, split in splits.items()}


def load_distractors(data: DataArguments, keys: str, cache_dir: str | None = None) -> RawSplit | None:
    """The utterances that enlarge a retrieval run's pool of keys (`--distractor_dataset_name`), None where none are.

    Only their audio is used, and of several languages only that of the keys (`--key_language`). The split's name says
    what it is, so that its clips are not taken for those of the run's own splits.

    Raises:
        InputError: as `load_splits`, or no clip is in the key language.
    """
    if data.distractor_dataset_name is None:
        return None
    name, config, split = data.distractor_dataset_name, data.distractor_dataset_config_name, data.distractor_split_name
    own = replace(data, dataset_name=name, data_dir=data.data_dir if name == data.dataset_name else None)
    # Nothing is predicted, so of the tasks that go with the config, any will do.
    dataset = (config or "").partition(".")[0]
    task = next((task for task in TASKS.values() if task.dataset == dataset), TASKS["fleurs-asr"])
    try:
        selection = select_task(task=task.name, dataset_config_name=config, dataset_name=name)
        selection = replace(selection, task=TASKS["fleurs-retrieval"], target_column=None)
        selection = replace(selection, task=replace(selection.task, dataset=task.dataset))
        request = SplitRequest(split or "test", flag="--distractor_split_name")
        raw = load_splits(own, selection, {"distractors": request}, cache_dir)["distractors"]
    except InputError as error:
        raise InputError(f"The distractors (--distractor_dataset_name {name}) cannot be loaded: {error}") from error
    # Data that name no language ("all") are taken at their word.
    rows = [row for row, language in enumerate(raw.languages) if language == "all" or is_key_language(language, keys)]
    if not rows:
        raise InputError(
            f"--distractor_dataset_name {name}: no clip of split {raw.name} is in the key language ({keys}), but in "
            f"{', '.join(sorted(set(raw.languages)))}. Choose another config with --distractor_dataset_config_name."
        )
    return replace(
        raw, name=f"{raw.name} (distractors)", dataset=raw.dataset.select(rows),
        languages=[raw.languages[row] for row in rows], clip_names=[raw.clip_names[row] for row in rows],
    )  # fmt: skip


def open_source(
    data: DataArguments, selection: Selection, split_names: Sequence[str], cache_dir: str | None
) -> tuple[Repository, bool]:
    """Opens what `--dataset_name` names; the second value says whether its speech is synthetic.

    Raises:
        InputError: There is nothing that can be read under this name.
    """
    name = data.dataset_name
    if name == XTREME_S and selection.task.dataset == "babel":
        return open_babel(data.data_dir), False
    if name == XTREME_S:
        return open_xtreme_s(hub_root=data.data_dir, cache_dir=cache_dir), False
    if name == DEMO:
        from xtremes_jax.data.demo import build_demo  # it loads espeak-ng, which no other source needs

        return open_repository(str(build_demo(cache_dir)), cache_dir=cache_dir), True
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):  # which, unlike Path.exists, raises no error where a name is too long
        if not (path.is_dir() or path.is_file()):
            raise InputError(f"--dataset_name {name} is a pipe or a device. Give a directory or a manifest.")
        name = str(path)
        synthetic = (path / SYNTHETIC_MARKER).is_file()
        saved = saved_configs(path) if path.is_dir() else {}
        if saved:
            return open_saved(name, saved), synthetic
        manifests = manifest_configs(path)
        if manifests:
            columns = {"audio_column": data.audio_column_name, "target_column": selection.target_column}
            usual = selection.target_column == selection.task.target_column
            return open_manifest(name, manifests, **columns, usual_target=usual, wanted=split_names), synthetic
        if path.is_file():
            raise InputError(
                f"--dataset_name {name} is a file that is no manifest: its name has to end in .csv, .tsv or .jsonl. Of "
                "parquet files, give the directory."
            )
        return open_repository(name, cache_dir=cache_dir, data_dir=data.data_dir), synthetic
    if path.suffix.lower() in SUFFIXES:  # else the hub would be asked for it, and a mistyped path blamed on the network
        raise InputError(f"--dataset_name {name}: no such file ({path.absolute()}). Check the path.")
    return open_repository(name, cache_dir=cache_dir, data_dir=data.data_dir), False


def choose_configs(source: Repository, selection: Selection) -> list[str]:
    """The configs that together hold the selection: one, or one for each language.

    Retrieval takes the config of its keys too, where those of one language or group are asked for.

    In this order: the config of that very name; all of `mls.<language>` for `mls.all`; `mls.all` for `mls.es` (its rows
    are then picked by language); the only config there is, if its name is not of the form `task.language`.

    Raises:
        InputError: None of these is there.
    """
    name, prefix = selection.config_name, f"{selection.task.dataset}."
    keys = _configs_of_keys(source, selection)
    if name in source.configs:
        return list(dict.fromkeys([name, *keys]))
    if not name.startswith(prefix):  # a config of the person's own, asked for by name
        raise choose("--dataset_config_name", name, source.configs, f"config in {source.name}")
    singles = [config for config in source.configs if config.startswith(prefix)]
    if selection.language == "all" and singles:
        # Without a group, data of one's own may hold any language.
        limited = selection.language_group is not None or source.name == XTREME_S
        kept = [config for config in singles if not limited or config.removeprefix(prefix) in selection.languages]
        if not kept:
            raise choose("--language_group", selection.language_group, singles, f"group of configs in {source.name}")
        return list(dict.fromkeys([*kept, *keys]))
    if selection.task.kind == "translation":  # a direction may be named after the language that is spoken alone
        same = [config for config in singles if direction(config.removeprefix(prefix)) == selection.language]
        if same:
            return same[:1]
    if f"{prefix}all" in singles:
        return [f"{prefix}all"]
    if len(source.configs) == 1 and "." not in source.configs[0]:
        logger.info("%s has the one config %s, which serves as %s.", source.name, source.configs[0], name)
        return [source.configs[0]]
    raise choose("--dataset_config_name", name, source.configs, f"config in {source.name}")


def _configs_of_keys(source: Repository, selection: Selection) -> list[str]:
    """Configs of one language each that hold the keys of a retrieval run which asks for some languages alone."""
    if selection.key_language is None or (selection.language == "all" and selection.language_group is None):
        return []
    prefix = f"{selection.task.dataset}."
    singles = [config for config in source.configs if config.startswith(prefix)]
    return [name for name in singles if is_key_language(name.removeprefix(prefix), selection.key_language)]


def _load_parts(
    source: Repository,
    configs: Sequence[str],
    request: SplitRequest,
    data: DataArguments,
    selection: Selection,
    beat: Callable[[], None],
) -> list[Part]:
    parts, failed = [], {}
    for config in configs:
        try:
            table = source.load(config, request.name)
            parts.append(part_of(table, config, request.name, data.audio_column_name, selection))
        except InputError as error:
            failed[config] = error
        beat()
    if len(configs) == 1 and failed:
        raise failed[configs[0]]
    if failed:
        reasons = "\n".join(f"  {config}: {error}" for config, error in failed.items())
        raise InputError(
            f"{len(failed)} of {len(configs)} languages cannot be loaded for split {request.name}:\n{reasons}\n"
            "Put these right, or choose one language by --language."
        )
    return parts


def _join(parts: list[Part], request: SplitRequest, audio_column: str, selection: Selection) -> RawSplit:
    tables = same_columns(parts, selection.target_column)
    table = tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)
    languages = [language for part in parts for language in part.languages]
    names = [name for part in parts for name in part.names]
    if not len(table):
        raise InputError(f"{request.flag} {request.name}: the split has no clips.")
    if request.max_samples is not None and request.max_samples < len(table):
        table = table.select(range(request.max_samples))
        languages, names = languages[: request.max_samples], names[: request.max_samples]
    return RawSplit(request.name, table, audio_column, selection.target_column, languages, names, None)


def _with_labels(splits: dict[str, RawSplit], selection: Selection) -> dict[str, RawSplit]:
    """Gives all splits of a classification run the same class names, or says which split differs."""
    if selection.task.kind != "classification":
        return splits
    first, *_ = splits.values()  # the training split, where there is one: a run names it first
    names, declared = labels_of(first.dataset, selection.target_column)
    for split in splits.values():
        others, other_declared = labels_of(split.dataset, selection.target_column)
        unknown = sorted(set(others) - set(names))
        if unknown or (declared and other_declared and others != names):
            raise InputError(
                f"--target_column_name {selection.target_column}: the classes of split {split.name} are not those of "
                f"{first.name}" + (f", which has no {', '.join(unknown)}" if unknown else ": their order differs")
                + ". Give both splits the same ClassLabel names."
            )  # fmt: skip
    return {role: replace(split, label_names=names) for role, split in splits.items()}
