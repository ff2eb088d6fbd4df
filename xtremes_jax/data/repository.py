"""Data sets in the shapes the `datasets` library keeps: a hub repository, a local directory like one, `save_to_disk`.

Everything is opened as a `Repository`: named configs, each with named splits. No clip is ever decoded here, and neither
torch nor torchcodec is touched: `datasets` 5 asks for them to decode audio and even to store it.
"""

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

from xtremes_jax.errors import InputError
from xtremes_jax.small_files import UnusableFile, read_object
from xtremes_jax.tasks import nearest

logger = logging.getLogger(__name__)

START, END = "segment_start", "segment_end"
"""Columns of rows whose clip is a stretch of a longer recording: float64 seconds; null where it is all of it."""

SYNTHETIC_MARKER = "SYNTHETIC"
"""Name of the file that marks a corpus directory as synthetic; its text says how the corpus was made."""

SPLIT_FLAGS = "--train/eval/predict_split_name"
"""How messages call the three flags that name a split."""

_DEEPEST = 10_000
"""Values within values in a JSON file: far more than any has, far fewer than overflow a parser's stack."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Repository:
    """Data under named configs, each with named splits."""

    name: str
    """What the person gave, for messages."""
    configs: tuple[str, ...]
    """Names of the configs, in the order of the source."""
    load: Callable[[str, str], datasets.Dataset]
    """(config, split) -> the rows; an InputError if there is no such split."""


def choose(flag: str, name: str, known: Iterable[str], what: str) -> InputError:
    """The error for a name that is none of the known ones: says the nearest and lists all.

    Args:
        flag: The flag it was given by, such as `--eval_split_name`.
        name: The name itself.
        known: What could have been given.
        what: What is being named and where, such as `split of config mls.all`.
    """
    known = [str(choice) for choice in known]
    return InputError(f"{flag} {name}: no such {what}{nearest(name, known)} There are: {', '.join(known) or 'none'}.")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message as a sentence, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."


class _StoredAudio(datasets.Audio):
    """`Audio` that keeps a file's path as it is: the library's own imports torch and torchcodec to do so."""

    def encode_example(self, value: str) -> dict:
        return {"bytes": None, "path": value}


def open_repository(name: str, *, cache_dir: str | None = None, data_dir: str | None = None) -> Repository:
    """Opens whatever `datasets.load_dataset(name, config)` reads: a hub id, or a local directory.

    Args:
        name: Hub id or directory.
        cache_dir: Where `datasets` keeps its copy; None for its own default.
        data_dir: A folder of the repository, as `load_dataset` takes it.

    Raises:
        InputError: No such directory or hub repository, no network, a loading script, or no data files.
    """
    local = os.path.isdir(name)
    if not local and not _HUB_ID.fullmatch(name):
        raise InputError(
            f"--dataset_name {name}: no such file or directory. Give a directory, a manifest (.csv, .tsv, .jsonl), "
            "a hub id such as facebook/multilingual_librispeech, or demo."
        )
    options = {"cache_dir": cache_dir, "data_dir": data_dir}
    try:
        configs = datasets.get_dataset_config_names(name, data_dir=data_dir)
    except Exception as error:  # the library raises a dozen types here, none of which tells people what to do
        raise _cannot_load(name, local, error) from error

    @cache
    def splits(config: str) -> datasets.DatasetDict:
        try:
            builder = datasets.load_dataset_builder(name, config, **options)
            if not os.path.isdir(builder.cache_dir):  # else the files have been parsed before
                for path in itertools.chain.from_iterable((builder.config.data_files or {}).values()):
                    _refuse_deep_json(str(path))
            if isinstance(builder, AudioFolder):
                builder.BASE_FEATURE = _StoredAudio
            builder.download_and_prepare()
            return builder.as_dataset()
        except InputError:
            raise
        except Exception as error:
            raise _cannot_load(f"{name} --dataset_config_name {config}", local, error) from error

    def load(config: str, split: str) -> datasets.Dataset:
        return pick_split(splits(config), split, config)

    return Repository(name, tuple(configs), load)


def _refuse_deep_json(path: str) -> None:
    """Raises `InputError` for a local JSON file of values within values without end: Arrow's parser dies of them.

    Brackets in texts count too, where they are not closed again.
    """
    if Path(path).suffix.lower() not in (".json", ".jsonl", ".ndjson") or not os.path.isfile(path):
        return
    depth = 0
    with open(path, "rb") as file:
        while piece := file.read(4 << 20):
            found = np.frombuffer(piece, np.uint8)
            opened, closed = (np.isin(found, [ord(sign) for sign in signs]) for signs in ("[{", "]}"))
            depths = depth + np.cumsum(opened.astype(np.int32) - closed)
            if depths.max() > _DEEPEST:
                raise InputError(f"{path}: its values are nested more than {_DEEPEST:,} deep. Mend or remove the file.")
            depth = int(depths[-1])


def pick_split(splits: dict[str, datasets.Dataset], split: str, config: str) -> datasets.Dataset:
    """One split of a config; an InputError that lists them all if it is not there."""
    if split not in splits:
        raise choose(SPLIT_FLAGS, split, splits, f"split in config {config}")
    return splits[split]


def row_names(table: datasets.Dataset, audio_column: str) -> list[str]:
    """What a person knows each row by: its path, file, id, the path stored with its audio, or `row 17`.

    Reads no audio, but for tables of rows picked out of others without any such column. (MLS's `original_path` is no
    name: it is the address of the whole recording that a clip was cut from, the same for hundreds of clips.)
    """
    for column in ("path", "file", "audio_id", "id"):
        if column in table.column_names and column != audio_column:
            values = table[column][:]
            if any(value not in (None, "") for value in values):
                break
    else:
        stored = table.select_columns([audio_column]).with_format("arrow")
        values = [
            path for batch in stored.iter(1000) for path in pc.struct_field(batch[audio_column], "path").to_pylist()
        ]
    return [f"row {row}" if value in (None, "") else str(value) for row, value in enumerate(values)]


def _cannot_load(what: str, local: bool, error: Exception) -> InputError:
    reason = first_line(error)
    if "loading script" in reason.lower() or "scripts are no longer supported" in reason.lower():
        remedy = "It is a Python loading script, which `datasets` runs no more: look for a copy in parquet."
    elif isinstance(error, datasets.data_files.EmptyDatasetError):
        remedy = "Give the directory that holds the parquet files (and the README.md with its configs, if any)."
    elif local:
        remedy = "Check that `datasets.load_dataset` can read the directory."
    else:
        remedy = "Check spelling and network, log in with `hf auth login` if it is private, or give a directory."
    return InputError(f"--dataset_name {what} cannot be loaded: {reason} {remedy}")


def is_saved(directory: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this directory."""
    return (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file()


def saved_configs(directory: Path) -> dict[str, Path]:
    """Config -> `save_to_disk` directory: the directory itself as `default`, else those of its folders that are one."""
    if is_saved(directory):
        return {"default": directory}
    return {folder.name: folder for folder in sorted(directory.iterdir()) if folder.is_dir() and is_saved(folder)}


def _check_saved(directory: Path) -> None:
    """InputError where a `save_to_disk` directory names a file or a folder that is not inside it."""
    described = directory / "dataset_dict.json"
    splits = _read_description(described).get("splits") if described.is_file() else None
    folders = [directory] if splits is None else [directory / _plain(described, split) for split in _listed(splits)]
    for folder in folders:
        state = folder / "state.json"
        content = _read_description(state)
        for key in ("_data_files", "_indices_data_files"):
            for entry in _listed(content.get(key)):
                _plain(state, entry.get("filename") if isinstance(entry, dict) else entry)


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else []  # of another type, `datasets` refuses it


def _read_description(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except UnusableFile as error:
        raise InputError(f"{path} {error}. Save the data set again.") from error


def _plain(path: Path, name: Any) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InputError(f"{path} names {ascii(name)[:80]}, which is no plain name beside it: refused.")
    return name


def open_saved(name: str, configs: dict[str, Path]) -> Repository:
    """Opens `save_to_disk` directories; a single `Dataset` is one split, of the name it was made with, or `train`."""

    @cache
    def splits(config: str) -> dict[str, datasets.Dataset]:
        _check_saved(configs[config])
        try:
            saved = datasets.load_from_disk(str(configs[config]))
            for part in saved.values() if isinstance(saved, datasets.DatasetDict) else [saved]:
                part.data.table.validate(full=True)  # its texts and offsets; Arrow believes them when it reads
        except Exception as error:  # truncated Arrow files, versions that do not fit, …
            raise InputError(
                f"--dataset_name {name}: {configs[config]} looks like a save_to_disk directory but cannot be read: "
                f"{first_line(error)} Save it again."
            ) from error
        return saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}

    return Repository(name, tuple(configs), lambda config, split: pick_split(splits(config), split, config))
