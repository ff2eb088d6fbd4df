"""The rows of one config and split: are their columns usable, which language is each in, which of them are wanted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from xtremes_jax.data.repository import row_names
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import Selection, nearest

logger = logging.getLogger(__name__)

_LANGUAGE_COLUMNS = ("lang_id", "language", "locale")
_TEXT_TYPES = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Part:
    """The wanted rows of one config."""

    config: str
    table: datasets.Dataset
    languages: list[str]
    """Language of each row."""
    names: list[str]
    """What a person knows each row by."""


def part_of(table: datasets.Dataset, config: str, split: str, audio_column: str, selection: Selection) -> Part:
    """Checks a table's columns, finds each row's name and language, and keeps the rows that are wanted.

    Raises:
        InputError: A column is missing or of the wrong type, or none of the rows is in the language asked for.
    """
    where = f"{config}, split {split}"
    table = _with_stored_audio(table, audio_column, where)
    table = _with_target(table, selection, where)
    names = row_names(table, audio_column)
    languages = row_languages(table, config, selection)
    keep = _wanted_rows(table, languages, selection, where)
    if keep is not None:
        table = table.select(keep)
        names, languages = [names[row] for row in keep], [languages[row] for row in keep]
    return Part(config, table, languages, names)


def _missing(flag: str, name: str, table: datasets.Dataset, where: str, others: Sequence[str] = ()) -> InputError:
    hint = nearest(name, table.column_names)
    other = next((column for column in others if column in table.column_names), None)
    if hint == "." and other:
        hint = f": did you mean {other}?"
    return InputError(f"{flag} {name}: no such column in {where}{hint} Its columns: {', '.join(table.column_names)}.")


def _with_stored_audio(table: datasets.Dataset, column: str, where: str) -> datasets.Dataset:
    """The table with its audio as `{"bytes", "path"}`, never to be decoded by `datasets`."""
    flag = "--audio_column_name"
    if column not in table.column_names:
        audio = [name for name, kind in table.features.items() if isinstance(kind, datasets.Audio)]
        raise _missing(flag, column, table, where, audio)
    kind = table.features[column]
    usable = isinstance(kind, datasets.Audio) or (isinstance(kind, dict) and {"bytes", "path"} <= set(kind))
    if isinstance(kind, datasets.Value):
        usable = kind.dtype in ("binary", "large_binary") or (kind.dtype in _TEXT_TYPES and _holds_paths(table, column))
    if not usable:
        raise InputError(
            f"{flag} {column}: this column of {where} does not hold audio, it is {_describe(kind)}. It has to hold "
            f"audio, the bytes of audio files, or their paths. The columns: {_describe_all(table)}."
        )
    if kind == datasets.Audio(decode=False):
        return table
    return table.cast_column(column, datasets.Audio(decode=False))


def _holds_paths(table: datasets.Dataset, column: str) -> bool:
    """Whether the first text of a column is the path of a file: a wrong column is told apart from a missing clip."""
    first = next((value for value in table.select(range(min(100, len(table))))[column][:] if value), None)
    return first is not None and len(first) < 4096 and Path(first).is_file()


def _describe(kind: object) -> str:
    if isinstance(kind, datasets.ClassLabel):
        return f"{kind.num_classes} classes"
    if isinstance(kind, datasets.Audio):
        return "audio"
    return {"string": "text", "large_string": "text"}.get(getattr(kind, "dtype", ""), str(kind))


def _describe_all(table: datasets.Dataset) -> str:
    return ", ".join(f"{name} ({_describe(kind)})" for name, kind in table.features.items())


def _with_target(table: datasets.Dataset, selection: Selection, where: str) -> datasets.Dataset:
    flag, column = "--target_column_name", selection.target_column
    text = selection.task.kind == "ctc"
    usual = ("transcription", "text", "sentence", "transcript", "normalized_text") if text else ("label", "labels")
    if column not in table.column_names:
        raise _missing(flag, column, table, where, usual)
    kind = table.features[column]
    is_text = isinstance(kind, datasets.Value) and kind.dtype in _TEXT_TYPES
    is_class = isinstance(kind, datasets.ClassLabel) or (isinstance(kind, datasets.Value) and "int" in kind.dtype)
    if not (is_text or (is_class and not text)):
        raise InputError(
            f"{flag} {column}: this column of {where} holds {_describe(kind)}, but --task {selection.task.name} "
            f"predicts {'text' if text else 'classes, given as ClassLabel, text or whole numbers'}. The columns: "
            f"{_describe_all(table)}."
        )
    if is_text and kind.dtype != "string":
        return table.cast_column(column, datasets.Value("string"))
    return table


def row_languages(table: datasets.Dataset, config: str, selection: Selection) -> list[str]:
    """Language of each row: from `lang_id`, `language` or `locale`, else the config's, else the one asked for."""
    dataset, _, language = config.partition(".")
    fallback = language if dataset == selection.task.dataset and language else selection.language
    for column in _LANGUAGE_COLUMNS:
        if column not in table.column_names:
            continue
        kind, values = table.features[column], table[column][:]
        if isinstance(kind, datasets.ClassLabel):
            return [fallback if value is None or value < 0 else kind.names[value] for value in values]
        if isinstance(kind, datasets.Value) and kind.dtype in _TEXT_TYPES:
            return [value or fallback for value in values]
    return [fallback] * len(table)


def _wanted_rows(table: datasets.Dataset, languages: list[str], selection: Selection, where: str) -> np.ndarray | None:
    """Rows of the group or language asked for; None for all of them."""
    if selection.language_group is not None:
        return _rows_of_group(table, languages, selection, where)
    if selection.language == "all":
        return None
    known = list(dict.fromkeys(languages))
    language = _spelled(selection.language, known)
    if language is None:
        raise InputError(
            f"--language {selection.language}: no clip of {where} is in it{_hint(selection.language, known)} Its "
            f"languages: {', '.join(sorted(known))}."
        )
    return None if len(known) == 1 else np.flatnonzero(np.array(languages) == language)


def _spelled(language: str, known: Sequence[str]) -> str | None:
    """The known language that is this one but for case and the kind of dash."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "-")

    return next((name for name in known if plain(name) == plain(language)), None)


def _hint(language: str, known: Sequence[str]) -> str:
    """Like `nearest`, but a name with the same language code (`fr` for `fr_fr` or `fr-FR`) counts as near."""
    code = language.lower().replace("-", "_").partition("_")[0]
    same = [name for name in known if name.lower().replace("-", "_").partition("_")[0] == code]
    return f": did you mean {' or '.join(same)}?" if same else nearest(language, known)


def _rows_of_group(table: datasets.Dataset, languages: list[str], selection: Selection, where: str) -> np.ndarray:
    """Rows of `--language_group`: by `lang_group_id` as in the reference script, else by the group's languages."""
    group, column = selection.language_group, "lang_group_id"
    labels = table.features.get(column)
    if isinstance(labels, datasets.ClassLabel):
        known = labels.names
        number = known.index(group) if group in known else None
        rows = np.flatnonzero(np.array(table[column][:]) == number) if number is not None else np.array([], int)
    else:
        known = sorted(set(languages))
        rows = np.flatnonzero(np.isin(np.array(languages), selection.languages))
    if not len(rows):
        raise InputError(
            f"--language_group {group}: no clip of {where} is in it. "
            f"{'Its groups' if isinstance(labels, datasets.ClassLabel) else 'Its languages'}: {', '.join(known)}."
        )
    return rows


def same_columns(parts: Sequence[Part], target_column: str) -> list[datasets.Dataset]:
    """The tables of several configs with the columns that all of them have, of the same types.

    Language labels may differ from config to config (each naming its own language): they are put into one list.

    Raises:
        InputError: The target column's type or classes differ.
    """
    if len(parts) == 1:
        return [parts[0].table]
    tables = [part.table for part in parts]
    if target_column == "lang_id":
        tables = _with_common_languages(parts)
    first = tables[0].features
    for part, table in zip(parts, tables, strict=True):
        if table.features[target_column] != first[target_column]:
            raise InputError(
                f"--target_column_name {target_column}: it is {_describe(table.features[target_column])} in "
                f"{part.config}, but {_describe(first[target_column])} in {parts[0].config}, or their classes have "
                "other names. They can only be joined if they agree."
            )
    common = [name for name, kind in first.items() if all(table.features.get(name) == kind for table in tables)]
    return [table.select_columns(common) for table in tables]


def _with_common_languages(parts: Sequence[Part]) -> list[datasets.Dataset]:
    kinds = [part.table.features["lang_id"] for part in parts]
    if all(kind == kinds[0] for kind in kinds):
        return [part.table for part in parts]
    names = list(dict.fromkeys(name for part in parts for name in part.languages))
    labels = datasets.ClassLabel(names=names)
    return [
        part.table.remove_columns("lang_id").add_column(
            "lang_id", np.array([names.index(language) for language in part.languages]), feature=labels
        )
        for part in parts
    ]


def labels_of(table: datasets.Dataset, column: str) -> tuple[list[str], bool]:
    """Class names of a column in the order of their ids, and whether the data declare them (`ClassLabel`).

    Without a declaration they are the values that occur, sorted (as numbers where they are).
    """
    kind = table.features[column]
    if isinstance(kind, datasets.ClassLabel):
        return list(kind.names), True
    values = {value for value in table[column][:] if value is not None}
    return [str(value) for value in sorted(values)], False
