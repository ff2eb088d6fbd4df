"""Manifests: CSV, TSV or JSON lines of audio paths, in one file with a `split` column or one file a split.

Common Voice's TSV (`path`, `sentence`, `locale`, clips under `clips/`) and NeMo's JSON lines (`audio_filepath`, `text`,
`offset`, `duration`) are understood as they are.
"""

import csv
import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import datasets

from xtremes_jax.data.repository import END, SPLIT_FLAGS, START, Repository, choose
from xtremes_jax.errors import InputError
from xtremes_jax.small_files import UnusableFile, parse_object
from xtremes_jax.tasks import nearest

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl")
_FIRST = 100  # rows by which it is judged where the files are: a few of them may be missing
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Split -> names that manifests give it; the first that is there counts, after the name that was asked for."""

_USUAL_AUDIO = "audio"
_AUDIO = ("path", "file", "audio_filepath", "audio_path", "audio_file", "file_name", "filename", "wav")
_LANGUAGE = ("language", "locale", "lang", "lang_id")
_TARGETS = {
    "transcription": ("text", "sentence", "transcript", "normalized_text"),
    "translation": ("target", "target_text", "english_transcription"),
    "intent_class": ("label", "class"),
    "lang_id": (*_LANGUAGE, "label", "class"),
}
"""Target column of a task -> the names under which manifests may have it. Never a column of another kind of target."""


def manifest_configs(path: Path) -> dict[str, Path]:
    """Config -> manifest file, or folder of one file a split; empty where there is none.

    A directory that `datasets` describes itself (README.md) is not taken for a folder of manifests.
    """
    if path.is_file():
        return {"default": path} if path.suffix.lower() in SUFFIXES else {}
    if (path / "README.md").is_file():
        return {}
    if _split_files(path):
        return {"default": path}
    return {folder.name: folder for folder in sorted(path.iterdir()) if folder.is_dir() and _split_files(folder)}


def _split_files(folder: Path) -> dict[str, Path]:
    """Split -> file, for the files of a folder that are named after a split."""
    known = {name for names in SPLIT_NAMES.values() for name in names}
    files = (file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file())
    return {file.stem: file for file in files if file.stem in known}


def open_manifest(
    name: str,
    configs: Mapping[str, Path],
    *,
    audio_column: str,
    target_column: str,
    usual_target: bool,
    wanted: Iterable[str],
) -> Repository:
    """Opens manifests as configs of rows: `audio_column`, `target_column`, and `language` where it is known.

    Paths that are not absolute are taken from the manifest's own folder. Whether the files are there is seen when the
    clips are prepared.

    Args:
        name: What the person gave, for messages.
        configs: From `manifest_configs`.
        audio_column: Name of the column of paths. In the place of "audio", which is the flag's default, other usual
            names are taken, which is logged.
        target_column: Name of the column to predict; likewise, but only if
        usual_target: it is the task's own and not a column that the person chose.
        wanted: Names of the splits of this run: a single file without a `split` column serves only one.

    Raises:
        InputError: An empty manifest, a line that cannot be read, or no column that could be the audio or the target.
    """
    wanted = tuple(wanted)

    @cache
    def splits(config: str) -> dict[str, list[dict]]:
        path = configs[config]
        if path.is_dir():
            return {split: read_rows(file) for split, file in _split_files(path).items()}
        return _by_split(path, read_rows(path), wanted)

    def load(config: str, split: str) -> datasets.Dataset:
        rows, path = splits(config), configs[config]
        found = next((known for known in (split, *SPLIT_NAMES.get(split, ())) if known in rows), None)
        if found is None:
            raise choose(SPLIT_FLAGS, split, rows, f"split in {path}")
        if found != split:
            logger.info("%s: split %s is called %s here.", path, split, found)
        file = _split_files(path)[found] if path.is_dir() else path
        return _to_dataset(file, rows[found], audio_column, target_column, usual_target)

    return Repository(name, tuple(configs), load)


def read_rows(path: Path) -> list[dict]:
    """Reads a manifest: one dictionary a line, values as text (CSV, TSV) or as JSON has them.

    TSV is taken literally: a quotation mark is a character like any other, as in Common Voice and FLEURS.

    Raises:
        InputError: The file is empty, not UTF-8, or a line does not fit the header or is not a JSON object.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = _read_json_lines(path, lines) if path.suffix.lower() == ".jsonl" else _read_table(path, lines)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The manifest {path} cannot be read: {error}. It has to be text in UTF-8.") from error
    if not rows:
        raise InputError(f"The manifest {path} is empty: it needs a header line and a line for each clip.")
    return rows


def _read_table(path: Path, lines: Iterable[str]) -> list[dict]:
    tabs = path.suffix.lower() == ".tsv"
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(f"{path}: its header names the column {ascii(twice)[:80]} twice. Rename one of the two.")
        rows = []
        for values in reader:
            if len(values) != len(header) and values:
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(values)} values, but the header names {len(header)} columns."
                    f" {'Remove tabs from' if tabs else 'Put quotation marks around'} values that hold the separator."
                )
            if values:
                rows.append(dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from error
    return rows


def _read_json_lines(path: Path, lines: Iterable[str]) -> list[dict]:
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(parse_object(line))
        except UnusableFile as error:
            wanted = '{"path": …, "transcription": …}'
            raise InputError(f"{path}, line {number} {error}. It has to be an object such as {wanted}.") from error
    return rows


def _by_split(path: Path, rows: list[dict], wanted: tuple[str, ...]) -> dict[str, list[dict]]:
    if not any("split" in row for row in rows):
        if len(wanted) != 1:
            raise InputError(
                f"The manifest {path} has no column `split`, and this run needs {' and '.join(wanted)}. Add the column,"
                " or give a folder with train, validation and test manifests."
            )
        return {wanted[0]: rows}
    splits: dict[str, list[dict]] = {}
    for row in rows:
        splits.setdefault(str(row.get("split")), []).append(row)
    return splits


def _find_column(path: Path, columns: list[str], flag: str, wanted: str, others: Iterable[str]) -> str:
    found = next((column for column in (wanted, *others) if column in columns), None)
    if found is None:
        raise InputError(
            f"{flag} {wanted}: the manifest {path} has no such column{nearest(wanted, columns)} "
            f"Its columns: {', '.join(columns)}."
        )
    if found != wanted:
        logger.info("%s: column %s is taken as %s.", path, found, wanted)
    return found


def _to_dataset(
    path: Path, rows: list[dict], audio_column: str, target_column: str, usual_target: bool
) -> datasets.Dataset:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    audio = _find_column(
        path, columns, "--audio_column_name", audio_column, _AUDIO if audio_column == _USUAL_AUDIO else ()
    )
    others = _TARGETS.get(target_column, ()) if usual_target else ()
    data = {audio_column: _resolve(path, [row.get(audio) for row in rows])}
    if target_column != audio_column:  # else nothing is predicted of these clips
        target = _find_column(path, columns, "--target_column_name", target_column, others)
        data[target_column] = [_text(row.get(target)) for row in rows]
    language = next((column for column in _LANGUAGE if column in columns), None)
    if language is not None:
        data["language"] = [_text(row.get(language)) for row in rows]
    if "offset" in columns:
        data[START], data[END] = _stretches(path, rows)
    features = {column: datasets.Value("float64" if column in (START, END) else "string") for column in data}
    table = datasets.Dataset.from_dict(data, features=datasets.Features(features))
    return table.cast_column(audio_column, datasets.Audio(decode=False))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _resolve(path: Path, files: list) -> list[str | None]:
    """Paths from the manifest's folder, or from its folder `clips` if the first ones lie there (Common Voice).

    Addresses such as `s3://…` stay as they are.
    """
    base = path.parent.absolute()
    first = [str(file) for file in files if file][:_FIRST]
    if not first:
        raise InputError(f"The manifest {path} names no audio file: every path is empty.")

    def lie_in(folder: Path) -> bool:
        return any(os.path.exists(folder / file) for file in first)  # Path.exists raises where a name is too long

    if not lie_in(base) and lie_in(base / "clips"):
        base = base / "clips"
    return [None if not file else str(file) if "://" in str(file) else str(base / str(file)) for file in files]


def _stretches(path: Path, rows: list[dict]) -> tuple[list[float | None], list[float | None]]:
    """Seconds at which each clip starts and ends in its recording, from NeMo's `offset` and `duration`."""
    starts: list[float | None] = []
    ends: list[float | None] = []
    for number, row in enumerate(rows, 1):
        if row.get("offset") in (None, ""):
            starts.append(None)
            ends.append(None)
            continue
        try:
            starts.append(float(row["offset"]))
            ends.append(float(row["offset"]) + float(row["duration"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # the last: whole numbers beyond any float
            raise InputError(f"{path}, clip {number}: `offset` and `duration` have to be seconds.") from error
    return starts, ends
