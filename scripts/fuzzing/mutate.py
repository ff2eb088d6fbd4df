"""Changes to valid bytes and to valid JSON, of the kinds that damage and malice make."""

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 10**12, 2**63 - 1, 2**64 - 1)
"""What a field of a header may claim; each is cut to the field's size."""

OUTSIDE = "../outside/secret.txt"
"""A file that is there, outside the folder of the input."""


class Raw(str):
    """Text that stands in JSON as it is, whether it is valid or not."""


def change_bytes(random: Random, data: bytes) -> bytes:
    """`data` after one to four changes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        random.choice(_CHANGES)(random, changed)
    return bytes(changed)


def _stretch(random: Random, data: bytearray) -> slice:
    start = random.randrange(len(data) + 1)
    return slice(start, start + random.choice((1, 4, 16, 64, 1024, 4096)))


def _flip(random: Random, data: bytearray) -> None:
    for _ in range(random.choice((1, 3, 20))):
        if data:
            data[random.randrange(min(len(data), random.choice((64, 1024, 1 << 30))))] = random.randrange(256)


def _truncate(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data) + 1) :]


def _cut(random: Random, data: bytearray) -> None:
    del data[_stretch(random, data)]


def _splice(random: Random, data: bytearray) -> None:
    copied = data[_stretch(random, data)]
    place = random.randrange(len(data) + 1)
    data[place:place] = copied * random.choice((1, 1, 2, 100))


def _insert(random: Random, data: bytearray) -> None:
    place = random.randrange(len(data) + 1)
    data[place:place] = random.choice(
        (b"\0", b"\xff" * 8, b"\0" * 4096, b"\xc3\x28", b'"', b"\n", random.randbytes(32))
    )


def _claim(random: Random, data: bytearray) -> None:
    """Writes a number over a field that may be one, in the file's first kilobyte more often than elsewhere."""
    size = random.choice((1, 2, 4, 8))
    place = random.randrange(max(1, min(len(data), random.choice((64, 1024, 1 << 30)))))
    number = random.choice(NUMBERS) % (1 << 8 * size)
    data[place : place + size] = number.to_bytes(size, random.choice(("little", "big")))


_CHANGES: tuple[Callable[[Random, bytearray], None], ...] = (_flip, _truncate, _cut, _splice, _insert, _claim, _claim)

_TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "é\u202e", "\x1b[2J", "~nobody-of-this-name", "/etc/passwd", OUTSIDE, "..", "/",
    "/dev/zero", "file:///dev/zero", "C:\\x", "a" * 300, "a/" * 3000, "$(touch executed)", "{{7*7}}", "%s%n", "null",
    "nan", "-1", "1e999", "9" * 5000, "true", "[UNK]", "__import__('os').system('touch executed')",
)  # fmt: skip
_NUMBERS = (-1, 0, 1, 2, 3, 7, 2**20, 2**20 + 1, 2**31, 2**63, 2**64, -(2**63), 10**30, -0.5, 0.0, 1e-300, 1e308, 0.5)
_RAW = (
    Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("1" * 5000), Raw("-" + "9" * 400),
    Raw("[" * 900 + "]" * 900), Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 500 + "1" + "}" * 500),
    Raw('"\\ud800"'), Raw("tru"), Raw("'single'"), Raw("01"), Raw("[[],[],[]," * 1 + "[]" + ",[]" * 20_000 + "]"),
)  # fmt: skip


def hostile_value(random: Random) -> Any:
    """A value that a field of JSON should not have."""
    kind = random.randrange(8)
    if kind == 0:
        return random.choice((None, True, False))
    if kind in (1, 2):
        return random.choice(_NUMBERS)
    if kind in (3, 4):
        return random.choice(_TEXTS)
    if kind == 5:
        return random.choice(_RAW)
    if kind == 6:
        return random.choice(([], [[]], [1], [None], ["a"], [10**12] * 3, list(range(2000)), [{}], [-1], [1.5]))
    return random.choice(({}, {"a": 1}, {"0": "a"}, {"-1": "a"}, {"9" * 5000: "a"}, {"content": 1}, {"": None}))


def change_json(random: Random, value: Any) -> str:
    """The text of `value` after one to three changes to its parts, and now and then to its bytes."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _change_part(random, value)
    text = to_json(value)
    if random.random() < 0.1:
        text = _duplicate_key(random, text)
    return text


def json_bytes(random: Random, value: Any) -> bytes:
    """`change_json` as a file has it; one in ten is damaged as bytes besides."""
    data = change_json(random, value).encode("utf-8", "surrogatepass")
    return change_bytes(random, data) if random.random() < 0.1 else data


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, child in items:
            found.append((part, key))
            waiting.append(child)
    return found


def _change_part(random: Random, value: Any) -> Any:
    places = _places(value)
    if not places or random.random() < 0.03:
        return hostile_value(random)
    container, key = random.choice(places)
    kind = random.randrange(10)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[random.choice(_TEXTS)] = container.pop(key)
    elif kind == 2 and isinstance(container, dict):
        container[random.choice(_TEXTS)] = hostile_value(random)
    elif kind == 3:
        other, place = random.choice(places)
        container[key] = copy.deepcopy(other[place]) if place in _keys(other) else hostile_value(random)
    else:
        container[key] = hostile_value(random)
    return value


def _keys(container: Any) -> Sequence[Any] | dict[Any, Any]:
    return container if isinstance(container, dict) else range(len(container))


def to_json(value: Any) -> str:
    """JSON, with `Raw` parts as they are."""
    raw: list[str] = []

    def marked(part: Any) -> Any:
        if isinstance(part, Raw):
            raw.append(part)
            return f"@raw{len(raw) - 1}@"
        if isinstance(part, dict):
            return {str(key): marked(child) for key, child in part.items()}
        return [marked(child) for child in part] if isinstance(part, list) else part

    text = json.dumps(marked(value))
    for number, part in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', part)
    return text


def _duplicate_key(random: Random, text: str) -> str:
    """The same key twice in an object, first with another value."""
    start = text.find("{")
    end = text.find(":", start)
    if start < 0 or end < 0:
        return text
    return f"{text[: start + 1]}{text[start + 1 : end]}: {to_json(hostile_value(random))}, {text[start + 1 :]}"
