"""The command line and the JSON file, read into the values that were given, flag by flag.

argparse only cuts the command line into flags and words. What a word means is decided here, by the same rules for both
sources, so that an error reads the same wherever the value came from.
"""

import argparse
import dataclasses
import json
import math
import re
import types
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from xtremes_jax.arguments.fields import DataArguments, ModelArguments, TrainingArguments
from xtremes_jax.arguments.refused import OFF, REFUSED
from xtremes_jax.errors import InputError
from xtremes_jax.small_files import UnusableFile, read_object
from xtremes_jax.tasks import nearest

GROUPS = {"model": ModelArguments, "data": DataArguments, "training": TrainingArguments}
"""Name of the field in `Arguments` -> dataclass."""

_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})

_OLD_VALUES = {"train_sampling_strategy": {"group_by_length": "true", "random": "false"}}
"""Words that an old name takes where its flag takes others."""

_SECRET = ("hub_token", "use_auth_token")
"""Flags whose value no message repeats."""

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}", re.IGNORECASE)
"""A token of the hub, which may stand where no flag takes it."""

_LONGEST_PATH, _LONGEST_NAME = 4095, 255
"""Bytes."""

_LARGEST_WHOLE = 2**63 - 1
"""Of any flag: what a 64-bit integer holds, as seeds and counts of steps become."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag, as the dataclasses describe it."""

    name: str
    group: str
    kind: type
    """bool, int, float, str, or tuple (of `item`)."""
    optional: bool
    default: Any
    metadata: Mapping[str, Any]
    item: type = str
    """Of a tuple: str or float."""


def describe_flags(groups: Mapping[str, type]) -> dict[str, Flag]:
    """The flags of dataclasses, by name."""
    flags = {}
    for group, cls in groups.items():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            kind = next(part for part in parts if part is not types.NoneType)
            item, kind = (*typing.get_args(kind), str)[0], typing.get_origin(kind) or kind
            is_optional = types.NoneType in parts
            flags[field.name] = Flag(field.name, group, kind, is_optional, field.default, field.metadata, item)
    return flags


FLAGS: dict[str, Flag] = describe_flags(GROUPS)
"""Every flag by its name in the dataclasses."""

SPELLINGS: dict[str, str] = {old: flag.name for flag in FLAGS.values() for old in (flag.name, *flag.metadata["old"])}
"""Every name a flag may be given by -> its name in the dataclasses."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What a person asked for: values by flag, and where each came from, as in "--fp16" or "conf.json: fp16"."""

    values: dict[str, Any]
    sources: dict[str, str]

    def source(self, name: str) -> str:
        """How to name a flag to the person: as it was given, or by its name."""
        return self.sources.get(name, f"--{name}")


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}. Run with --help for all flags.")


def read_arguments(argv: Sequence[str], program: str, *, scoring: bool = False) -> Given:
    """Reads `argv` (without the program's name): an optional `*.json` file first, then flags, which override the file.

    Args:
        program: what `--help` calls the program.
        scoring: whether `--help` lists the flags of evaluation alone.

    Raises:
        InputError: unknown or refused flags, wrong types, values out of range, one flag given two values by two names.
        SystemExit: after `--help`.
    """
    try:
        return _read(list(argv), program, scoring)
    except InputError as error:
        if not _TOKEN.search(str(error)):
            raise
        raise InputError(_TOKEN.sub("hf_...", str(error))) from None


def _read(argv: list[str], program: str, scoring: bool) -> Given:
    values, sources = {}, {}
    if argv and argv[0].endswith(".json") and not argv[0].startswith("-"):
        _resolve(_read_json(argv[0]), values, sources, f"{argv.pop(0)}: ")
    from_line: dict[str, Any] = {}
    line_sources: dict[str, str] = {}
    _resolve(_read_line(argv, program, scoring), from_line, line_sources, "--")
    return Given(values | from_line, sources | line_sources)


def _read_json(path: str) -> dict[str, Any]:
    try:
        return read_object(path)
    except UnusableFile as error:
        raise InputError(f'{path} {error}. Give one object of flags and values, such as {{"task": "mls"}}.') from error


def _read_line(argv: list[str], program: str, scoring: bool) -> dict[str, Any]:
    """Name as written (but - as _, so that --learning-rate will do) -> None for a bare flag, a word, or words."""
    parser = build_parser(program, scoring=scoring)
    found, unknown = parser.parse_known_args([underscored(word) for word in argv])
    flags = [word for word in unknown if word.startswith("--")]
    if flags:
        name = flags[0][2:].partition("=")[0]
        raise InputError(f"Unknown flag --{name}{nearest(name, SPELLINGS)} Run with --help for all flags.")
    if unknown:
        raise InputError(f"{unknown[0]!r} belongs to no flag. A JSON file of flags must come first, before all flags.")
    return vars(found)


def underscored(word: str) -> str:
    """A word of the command line, with the dashes in a flag's name as underscores."""
    if not word.startswith("--"):
        return word
    name, cut, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{cut}{value}"


def build_parser(program: str, *, scoring: bool = False) -> argparse.ArgumentParser:
    """The argparse parser behind `--help`, which lists flags by group but neither old names nor refused flags.

    All flags parse whatever `scoring` says, so that one of training can be refused by name; it only narrows the list.
    """
    parser = Parser(
        prog=program,
        usage=f"{program} [flags.json] [--flag value ...]",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for group in GROUPS:
        section = parser.add_argument_group(group)
        for flag in (flag for flag in FLAGS.values() if flag.group == group):
            shown = not scoring or flag.metadata["scoring"]
            add_flag(section, flag, shown=shown)
            for old in flag.metadata["old"]:
                parser.add_argument(f"--{old}", dest=old, help=argparse.SUPPRESS, **_shape(flag, old))
            if flag.kind is bool and flag.default is True:
                parser.add_argument(
                    f"--no_{flag.name}", dest=f"no_{flag.name}", nargs=0, action=_Bare, help=argparse.SUPPRESS
                )
    for name in REFUSED:
        parser.add_argument(f"--{name}", dest=name, nargs="*", help=argparse.SUPPRESS)
    return parser


def add_flag(section: Any, flag: Flag, *, shown: bool = True) -> None:
    """Has argparse know a flag by its name, and list it in `--help` if it is to be shown."""
    text = describe(flag).replace("%", "%%") if shown else argparse.SUPPRESS
    section.add_argument(f"--{flag.name}", help=text, **_shape(flag))


class _Bare(argparse.Action):
    """A flag that takes no word."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, None)


def _shape(flag: Flag, spelling: str = "") -> dict[str, Any]:
    """How many words argparse lets a flag take, and what `--help` calls them."""
    if flag.kind is bool and spelling not in _OLD_VALUES:
        return {"nargs": "?", "metavar": "true|false"}
    metavar = "|".join(flag.metadata["choices"]) or {int: "N", float: "X"}.get(_word_kind(flag), "TEXT")
    return {"nargs": "*" if flag.kind is tuple else None, "metavar": metavar}


def _word_kind(flag: Flag) -> type:
    """What one of the flag's words is."""
    return flag.item if flag.kind is tuple else flag.kind


def describe(flag: Flag) -> str:
    """Help text of a flag with its default and old names, for `--help`."""
    old = f" Also: {', '.join('--' + name for name in flag.metadata['old'])}." if flag.metadata["old"] else ""
    default = " ".join(flag.default) if isinstance(flag.default, tuple) else flag.default
    return f"{flag.metadata['help']}{old}" + ("" if default in (None, "") else f" [{default}]")


def _resolve(raw: Mapping[str, Any], values: dict[str, Any], sources: dict[str, str], prefix: str) -> None:
    """Files raw values under their flags; `prefix` ("--" or "conf.json: ") tells where they were written."""
    from_json = prefix != "--"
    for spelling, value in raw.items():
        where = f"{prefix}{spelling}"
        if spelling in REFUSED:
            if not from_json or value not in (None, [], {}):
                _check_refused(spelling, value, where)
            continue
        name = SPELLINGS.get(spelling)
        if name is None and spelling.startswith("no_") and spelling[3:] in FLAGS:
            name, value = spelling[3:], _opposite(value, where)
        if name is None:
            raise InputError(f"{where} is unknown{nearest(spelling, SPELLINGS)} Run with --help for all flags.")
        flag = FLAGS[name]
        if from_json and value is None and not flag.optional:
            continue  # null: not given
        value = convert(flag, _translate(spelling, value, where), where, literal=from_json)
        if name in values and values[name] != value:
            which = "other values" if name in _SECRET else f"the values {values[name]} and {value}"
            raise InputError(f"{sources[name]} and {where} are two names of one flag, with {which}. Give one of them.")
        values[name], sources[name] = value, where


def _check_refused(name: str, value: Any, where: str) -> None:
    refused, word = REFUSED[name], _spell(value)
    if word in refused.accepted:
        return
    allowed = "" if refused.accepted in ((), OFF) else f", or give it as {' or '.join(refused.accepted)}"
    shown = where if name in _SECRET else f"{where} {word}"
    raise InputError(f"{shown} cannot be honoured: {refused.reason}. Drop the flag{allowed}.")


def _spell(value: Any) -> str:
    """A refused flag's value as one lower-case word: true for a bare flag, a number in its shortest form."""
    if isinstance(value, list):
        value = " ".join(map(str, value)) if value else "true"
    text = "none" if value == "" else str(value).lower()
    try:
        return f"{float(text):g}"
    except ValueError:
        return "true" if text in _TRUE else "false" if text in _FALSE else text


def _opposite(value: Any, where: str) -> bool:
    if value is None or value is True:
        return False
    raise InputError(f"{where} takes no value.")


def _translate(spelling: str, value: Any, where: str) -> Any:
    """An old name's own words, in the words of the flag it stands for."""
    words = _OLD_VALUES.get(spelling)
    if words is None or value is None:
        return value
    if not isinstance(value, str) or value not in words:
        raise InputError(f"{where} {value}: choose one of {', '.join(words)}.")
    return words[value] == "true"


def convert(flag: Flag, value: Any, where: str, *, literal: bool) -> Any:
    """A value of the flag's type, within its bounds.

    Args:
        value: None (a bare flag), a word or words from the command line; with `literal`, a value from JSON, whose type
            must fit as it is.
        where: how to name the flag in an error.
    """
    if flag.optional and (value is None if literal else _is_none(flag, value)):
        return None
    if flag.kind is tuple:
        words = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if flag.item is not str:
            one = dataclasses.replace(flag, kind=flag.item, optional=False)
            return tuple(convert(one, word, where, literal=literal) for word in words)
        if not all(isinstance(word, str) for word in words):
            raise InputError(f"{where} must be a list of strings, not {json.dumps(value)}.")
        return tuple(_choose(flag, word, where) for word in words)
    result = _from_json(flag, value) if literal else _from_word(flag, value)
    if result is None:
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[flag.kind]
        given = type(value).__name__ if flag.name in _SECRET else json.dumps(value, ensure_ascii=False)
        raise InputError(f"{where} must be {wanted}, not {given}.")
    if flag.kind in (int, float):
        _check_bounds(flag, result, where)
    if flag.kind is not str:
        return result
    if flag.name not in _SECRET:
        _check_text(result, where)
    return _choose(flag, result, where)


def _check_text(text: str, where: str) -> None:
    """What no path, name of a column or address is: refused here, where it is known which flag it came from."""
    odd = next((character for character in text if unicodedata.category(character) in ("Cc", "Cs")), None)
    if odd is not None:  # a control character, or a byte that is not UTF-8
        raise InputError(f"{where} holds the character {ascii(odd)}, which no name has.")
    if len(text.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        raise InputError(f"{where} is longer than the name of a file can be: {text[:40]}…")


def _is_none(flag: Flag, value: Any) -> bool:
    """Whether the word "none" was given and is not one of the flag's own words."""
    return isinstance(value, str) and value.lower() == "none" and "none" not in flag.metadata["choices"]


def _from_json(flag: Flag, value: Any) -> Any:
    """The JSON value if its type fits the flag, else None."""
    if isinstance(value, bool) or flag.kind is bool:
        return value if isinstance(value, bool) and flag.kind is bool else None
    if flag.kind is float and isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value if isinstance(value, flag.kind) else None


def _from_word(flag: Flag, word: str | bool | list | None) -> Any:
    """The meaning of a word of the command line (True from a translated one), or None if it has none."""
    if isinstance(word, list):  # what argparse makes of "--seed=--"
        return None
    if flag.kind is bool:
        if word is None or isinstance(word, bool):
            return word is not False
        return True if word.lower() in _TRUE else False if word.lower() in _FALSE else None
    try:
        return flag.kind(word)
    except ValueError:
        return None


def _check_bounds(flag: Flag, value: float, where: str) -> None:
    bounds = flag.metadata
    if flag.kind is int and abs(value) > _LARGEST_WHOLE:
        raise InputError(f"{where} is out of range: it must be at most {_LARGEST_WHOLE}.")
    if not math.isfinite(value):
        raise InputError(f"{where} {value} is not a finite number.")
    for bound, words, holds in (
        ("at_least", "at least", lambda limit: value >= limit),
        ("above", "greater than", lambda limit: value > limit),
        ("at_most", "at most", lambda limit: value <= limit),
        ("below", "less than", lambda limit: value < limit),
    ):
        if bounds[bound] is not None and not holds(bounds[bound]):
            raise InputError(f"{where} {value:g} is out of range: it must be {words} {bounds[bound]:g}.")


def _choose(flag: Flag, word: str, where: str) -> str:
    choices = flag.metadata["choices"]
    if choices and word not in choices:
        raise InputError(f"{where} {word} is not possible{nearest(word, choices)} Choose one of {', '.join(choices)}.")
    return word
