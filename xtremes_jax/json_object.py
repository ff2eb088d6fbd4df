"""JSON objects out of files that anybody may have written: within a limit of size, and with nothing odd in them."""

import json
import os
import stat
from pathlib import Path
from typing import Any

LARGEST_BYTES = 8 << 20
"""Of a configuration or an index. Parsed, JSON takes up to 24 times its size."""


class UnusableJson(ValueError):
    """What is wrong with a file, in words that go after its name: "cannot be read: No such file or directory"."""


def read_object(path: str | Path, *, largest: int = LARGEST_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file; of a pipe or a device nothing is read.
        largest: bytes that it may have.

    Raises:
        UnusableJson: it cannot be read, is too large, or is not one JSON object in UTF-8; a name comes twice in an
            object, or a text holds half of a pair of surrogates, which cannot be written.
    """
    content = read_bytes(path, largest=largest)
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_repeats)
        if b"\\ud" in content.lower():  # an escape, the only way in: UTF-8 itself has none
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableJson("holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from error
    except UnusableJson:
        raise
    except ValueError as error:  # not UTF-8, not JSON, a number of thousands of digits
        raise UnusableJson(f"is not valid JSON ({error})") from error
    except RecursionError as error:
        raise UnusableJson("is not valid JSON (its values are nested too deeply)") from error
    if not isinstance(value, dict):
        raise UnusableJson(f"must hold a JSON object, not a {type(value).__name__}")
    return value


def read_bytes(path: str | Path, *, largest: int) -> bytes:
    """All of a file that is not larger than that.

    Raises:
        UnusableJson: it cannot be read, or is larger.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # open() itself refuses a directory
            raise UnusableJson("is a pipe or a device, not a file")
        with open(path, "rb") as file:
            content = file.read(min(found.st_size, largest) + 1)
    except OSError as error:
        raise UnusableJson(f"cannot be read: {error.strerror}") from error
    except UnusableJson:
        raise
    except ValueError as error:  # a null character in its name
        raise UnusableJson(f"cannot be read: {error}") from error
    if len(content) > largest:
        raise UnusableJson(f"is larger than {largest >> 20} MiB")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise UnusableJson(f"names {ascii(repeated)[:80]} twice in one object")
    return found
