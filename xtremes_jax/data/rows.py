"""The rows of one config and split: are their columns usable, which language is each in, which of them are wanted."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from xtremes_jax.data.repository import row_names
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import Selection, direction, is_key_language, nearest, nearest_language

logger = logging.getLogger(__name__)

_LANGUAGE_COLUMNS = ("lang_id", "language", "locale")
_DIRECTION = re.compile(r"[a-z]{2,3}(-[A-Z]{2})?[._][a-z]{2,3}(-[A-Z]{2})?")
_TEXT_TYPES = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Part:
    """One config, and which of its rows are wanted.

    The rows are picked out last: where columns are changed after that, `datasets` writes a copy of all the audio.
    """

    config: str
    table: datasets.Dataset
    """All rows."""
    keep: np.ndarray | None
    """Wanted rows; None for all of them."""
    languages: list[str]
    """Language of each wanted row."""
    names: list[str]
    """What a person knows each wanted row by."""


def part_of(table: datasets.Dataset, config: str, split: str, audio_column: str, selection: Selection) -> Part:
    """Checks a table's columns, finds each row's name and language, and keeps the rows that are wanted.

    Raises:
        InputError: A column is missing or of the wrong type, or none of the rows is in the language asked for.
    """
    where = f"{config}, split {split}"
    table = _with_stored_audio(table, audio_column, where)
    if selection.target_column is not None:
        _check_target(table, selection, where)
    names = row_names(table, audio_column)
    languages = row_languages(table, config, selection)
    keep = _wanted_rows(table, languages, selection, where, config)
    if keep is not None:
        names, languages = [names[row] for row in keep], [languages[row] for row in keep]
    return Part(config, table, keep, languages, names)


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
    """Whether any of the first 100 texts is the path of a file, or an address such as `s3://…`.

    So a wrong column is told apart from missing clips.
    """
    first = table.select(range(min(100, len(table))))[column][:]
    # os.path.isfile, because Path.is_file raises an error where a text is too long for a name.
    return any("://" in value or os.path.isfile(value) for value in first if value)


def _describe(kind: object) -> str:
    if isinstance(kind, datasets.ClassLabel):
        return f"{kind.num_classes} classes"
    if isinstance(kind, datasets.Audio):
        return "audio"
    return {"string": "text", "large_string": "text"}.get(getattr(kind, "dtype", ""), str(kind))


def _describe_all(table: datasets.Dataset) -> str:
    return ", ".join(f"{name} ({_describe(kind)})" for name, kind in table.features.items())


def _check_target(table: datasets.Dataset, selection: Selection, where: str) -> None:
    flag, column = "--target_column_name", selection.target_column
    task = selection.task
    usual = {
        "ctc": ("transcription", "text", "sentence", "transcript", "normalized_text"),
        "translation": ("translation", "target", "target_text", "english_transcription"),
        "classification": ("label", "labels"),
        "retrieval": ("sentence_id", "sentence"),
    }[task.kind]
    text = task.predicts_text
    wanted = "text" if text else "classes, given as ClassLabel, text or whole numbers"
    if task.kind == "retrieval":
        wanted = "the ids of sentences, text or whole numbers"
    if column not in table.column_names:
        raise _missing(flag, column, table, where, usual)
    kind = table.features[column]
    is_text = _is_text(kind)
    is_class = isinstance(kind, datasets.ClassLabel) or (isinstance(kind, datasets.Value) and "int" in kind.dtype)
    if not (is_text or (is_class and not text)):
        raise InputError(
            f"{flag} {column}: this column of {where} holds {_describe(kind)}, but --task {selection.task.name} "
            f"{'needs' if selection.task.kind == 'retrieval' else 'predicts'} {wanted}. The columns: "
            f"{_describe_all(table)}."
        )


def row_languages(table: datasets.Dataset, config: str, selection: Selection) -> list[str]:
    """Language of each row: from `lang_id`, `language` or `locale`, else the config's, else the one asked for.

    Of translation it is the direction, such as `fr.en`, also where the data name only the language that is spoken.
    """
    if selection.task.kind == "translation":
        return _row_directions(table, config, selection)
    return _row_languages(table, config, selection)


def _row_directions(table: datasets.Dataset, config: str, selection: Selection) -> list[str]:
    # A config of a source's own may be called `fr_en`, and its columns may say nothing about languages.
    named = selection.language == "all" and _DIRECTION.fullmatch(config)
    languages = [config if named and name == "all" else name for name in _row_languages(table, config, selection)]
    spelled = {name: name if name == "all" else direction(name) for name in set(languages)}
    return [spelled[name] for name in languages]


def _row_languages(table: datasets.Dataset, config: str, selection: Selection) -> list[str]:
    dataset, _, language = config.partition(".")
    fallback = language if dataset == selection.task.dataset and language else selection.language
    for column in _LANGUAGE_COLUMNS:
        if column not in table.column_names:
            continue
        values = _texts(table, column)
        if values is not None:
            return [value or fallback for value in values]
    return [fallback] * len(table)


def _texts(table: datasets.Dataset, column: str) -> list[str | None] | None:
    """A column's texts or names of classes, None where there is no such class; None if it holds neither."""
    kind = table.features[column]
    if isinstance(kind, datasets.ClassLabel):
        known = range(len(kind.names))
        return [kind.names[value] if value in known else None for value in table[column][:]]
    return table[column][:] if _is_text(kind) else None


def _is_text(kind: object) -> bool:
    return isinstance(kind, datasets.Value) and kind.dtype in _TEXT_TYPES


def _wanted_rows(
    table: datasets.Dataset, languages: list[str], selection: Selection, where: str, config: str
) -> np.ndarray | None:
    """Rows of the group or language asked for, for retrieval with the keys that belong to them; None for all rows."""
    if selection.language == "all" and selection.language_group is None:
        return None
    keys = selection.key_language
    is_key = np.array([keys is not None and is_key_language(language, keys) for language in languages], bool)
    if keys is not None and is_key_language(config.partition(".")[2], keys) and is_key.all():
        return None  # this config is there for the sake of its keys
    if selection.language_group is not None:
        return np.union1d(_rows_of_group(table, languages, selection, where), np.flatnonzero(is_key))
    known = list(dict.fromkeys(languages))
    language = _spelled(selection.language, known)
    if language is None:
        raise InputError(
            f"--language {selection.language}: no clip of {where} is in it"
            f"{nearest_language(selection.language, known)} Its languages: {', '.join(sorted(known))}."
        )
    return None if len(known) == 1 else np.flatnonzero((np.array(languages) == language) | is_key)


def _spelled(language: str, known: Sequence[str]) -> str | None:
    """The known language that is this one but for case and the kind of dash."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "-")

    return next((name for name in known if plain(name) == plain(language)), None)


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


def same_columns(parts: Sequence[Part], target_column: str | None) -> list[datasets.Dataset]:
    """The wanted rows of several configs, with the columns that all of them have, of the same types.

    Language labels may differ from config to config (each naming its own language): they are put into one list. So may
    the ways in which Arrow keeps text.

    Raises:
        InputError: The target column's type or classes differ.
    """
    tables = [part.table for part in parts]
    if len(parts) > 1:
        if target_column == "lang_id":
            tables = _with_common_languages(tables)
        for part, table in zip(parts, tables, strict=True) if target_column is not None else ():
            kind, first = table.features[target_column], tables[0].features[target_column]
            if not _same_kind(kind, first):
                raise InputError(
                    f"--target_column_name {target_column}: it is {_describe(kind)} in {part.config}, but "
                    f"{_describe(first)} in {parts[0].config}, or their classes have other names. They can only be "
                    "joined if they agree."
                )
        tables = _with_common_columns(tables)
    wanted = zip(tables, parts, strict=True)
    return [table if part.keep is None else table.select(part.keep) for table, part in wanted]


def _same_kind(one: object, other: object) -> bool:
    return one == other or (_is_text(one) and _is_text(other))


def _with_common_columns(tables: Sequence[datasets.Dataset]) -> list[datasets.Dataset]:
    """The columns that all tables have, text as `string` where they keep it differently."""
    first = tables[0].features
    common = [name for name, kind in first.items() if all(_same_kind(t.features.get(name), kind) for t in tables)]
    unlike = [name for name in common if any(table.features[name] != first[name] for table in tables)]
    tables = [table.select_columns(common) for table in tables]
    if not unlike:
        return tables
    strings = datasets.Features({name: datasets.Value("string") for name in unlike})
    # `cast` writes what it is given anew: only the texts, not the audio.
    return [
        datasets.concatenate_datasets(
            [table.remove_columns(unlike), table.select_columns(unlike).cast(strings)], axis=1
        ).select_columns(common)
        for table in tables
    ]  # fmt: skip


def _with_common_languages(tables: Sequence[datasets.Dataset]) -> list[datasets.Dataset]:
    """The tables with one list of languages, where each has its own; -1 for rows that have none."""
    kinds = [table.features["lang_id"] for table in tables]
    if all(_same_kind(kind, kinds[0]) for kind in kinds):
        return list(tables)
    columns = [_texts(table, "lang_id") for table in tables]
    if any(texts is None for texts in columns):
        return list(tables)
    lists = [
        kind.names if isinstance(kind, datasets.ClassLabel) else texts
        for kind, texts in zip(kinds, columns, strict=True)
    ]
    names = list(dict.fromkeys(name for known in lists for name in known if name is not None))
    numbers = {name: number for number, name in enumerate(names)} | {None: -1}
    return [
        table.remove_columns("lang_id").add_column(
            "lang_id", np.array([numbers[text] for text in texts]), feature=datasets.ClassLabel(names=names)
        )
        for table, texts in zip(tables, columns, strict=True)
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
