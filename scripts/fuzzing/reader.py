"""What a fuzzed reader is: how its hostile inputs are made, and how one is read and judged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple


class Insane(AssertionError):
    """A reader accepted an input and gave values that cannot be."""


class Place(NamedTuple):
    """Where one input lies, and what may be written while it is read."""

    root: Path

    @property
    def folder(self) -> Path:
        """The input: all that its maker writes lies here, and nothing here may change while it is read."""
        return self.root / "input"

    @property
    def cache(self) -> Path:
        """What a reader keeps for later runs goes here."""
        return self.root / "cache"

    def clear(self) -> None:
        """An empty input folder; beside it a file that no input may lead to, and an empty current directory."""
        for name in ("input", "cwd", "outside"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(parents=True)
        self.cache.mkdir(exist_ok=True)
        (self.root / "outside" / "secret.txt").write_text("not to be read\n", encoding="utf-8")

    def written(self) -> set[str]:
        """Every file that is there, but in the cache."""
        return {str(path) for name in ("input", "cwd", "outside") for path in (self.root / name).rglob("*")}


class Reader(NamedTuple):
    """One way of reading files that others have made."""

    name: str
    make: Callable[[Random, Place], None]
    """Writes one hostile input."""
    read: Callable[[Random, Place], None]
    """Reads it: InputError where it is refused, `Insane` where something impossible was accepted."""
    names_file: bool = True
    """Whether a refusal has to name a file; else it names a flag or a field."""
    also_named: tuple[str, ...] = ()
    """What a refusal may name in place of a file."""


def require(holds: bool, what: object) -> None:
    """Raises `Insane` unless what was accepted makes sense."""
    if not holds:
        raise Insane(str(what))
