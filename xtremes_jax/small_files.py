"""Small files that anybody may have written: read within a limit of size, JSON objects with nothing odd in them."""

import json
import os
import stat
from pathlib import Path
from typing import Any

LARGEST_BYTES = 8 << 20
"""Of a configuration or an index. Parsed, JSON takes up to 24 times its size."""


class UnusableFile(ValueError):
    """What is wrong with a file or a line, in words that go after its name, as in "is larger than 8 MiB"."""


def read_object(path: str | Path, *, largest: int = LARGEST_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file; of a pipe or a device nothing is read.
        largest: bytes that it may have.

    Raises:
        UnusableFile: it cannot be read, is too large, or is not one JSON object in UTF-8; a name comes twice in an
            object, or a text holds half of a pair of surrogates, which cannot be written.
    """
    return parse_object(read_text(path, largest=largest))


def parse_object(text: str) -> dict[str, Any]:
    """The object that a piece of JSON is; UnusableFile as `read_object`."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
        if "\\ud" in text or "\\uD" in text:  # an escape, the only way in: UTF-8 itself has none
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableFile("holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from error
    except UnusableFile:
        raise
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise UnusableFile(f"is not valid JSON ({error})") from error
    except RecursionError as error:
        raise UnusableFile("is not valid JSON (its values are nested too deeply)") from error
    if not isinstance(value, dict):
        raise UnusableFile(f"must hold a JSON object, not a {type(value).__name__}")
    return value


def read_text(path: str | Path, *, largest: int) -> str:
    """All of a file in UTF-8 (without its mark of byte order) that is not larger than that.

    Raises:
        UnusableFile: it cannot be read, is larger, or is not UTF-8.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # open() itself refuses a directory
            raise UnusableFile("is a pipe or a device, not a file")
        with open(path, "rb") as file:
            content = file.read(min(found.st_size, largest) + 1)
    except OSError as error:
        raise UnusableFile(f"cannot be read: {error.strerror}") from error
    except UnusableFile:
        raise
    except ValueError as error:  # a null character in its name
        raise UnusableFile(f"cannot be read: {error}") from error
    if len(content) > largest:
        raise UnusableFile(f"is larger than {largest >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableFile(f"is not text in UTF-8 ({error})") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise UnusableFile(f"names {ascii(repeated)[:80]} twice in one object")
    return found
