"""Checksums of a checkpoint's files: written into it before Orbax commits it, compared before it is read.

Orbax makes a checkpoint appear whole or not at all; what a disk, a copy or a person does to it afterwards it does not
notice: a flipped byte in a parameter loads as another parameter.
"""

import hashlib
import json
import os
from collections.abc import Iterator

import orbax.checkpoint as ocp
from etils import epath

from xtremes_jax.training.places import is_remote

SEAL = "checksums.json"
_UNSEALED = {SEAL, "commit_success.txt"}
"""The seal itself, and Orbax's mark, which it sets after it."""


def seal(directory: epath.Path) -> None:
    """Writes `checksums.json`: size and SHA-256 of every file below the directory, by its path there.

    All of it is on the disk then: Orbax removes an older checkpoint as soon as this one has its name.
    """
    paths = dict(_files(directory))
    files = {name: [path.stat().length, _digest(path)] for name, path in paths.items()}
    (directory / SEAL).write_text(json.dumps(files, indent=1, sort_keys=True))
    for path in (*paths.values(), directory / SEAL, *{path.parent for path in paths.values()}, directory):
        _sync(path)


def _sync(path: epath.Path) -> None:
    if is_remote(path):  # in a bucket, what is written is stored
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def damage(directory: epath.Path, *, contents: bool = True) -> str | None:
    """What is wrong with a sealed directory, in words that end a sentence; None if every file is as it was sealed.

    Args:
        directory: sealed by `seal`.
        contents: read the files; False looks at their names and sizes alone.
    """
    try:
        found = dict(_files(directory))
        sealed = _read_seal(directory)
    except (OSError, ValueError) as error:
        return f"{directory.name}/{SEAL} cannot be read ({error})"
    for name in sorted(found.keys() | sealed.keys()):
        try:
            wrong = _difference(found.get(name), sealed.get(name), contents)
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        if wrong:
            return f"{directory.name}/{name} {wrong}"
    return None


def _difference(path: epath.Path | None, sealed: tuple[int, str] | None, contents: bool) -> str | None:
    if path is None:
        return "is missing"
    if sealed is None:
        return "is no file of it"
    size, digest = sealed
    if path.stat().length != size:
        return f"has {path.stat().length} bytes in place of {size}"
    return "has other bytes than were written" if contents and _digest(path) != digest else None


def _read_seal(directory: epath.Path) -> dict[str, tuple[int, str]]:
    sealed = json.loads((directory / SEAL).read_text())
    if not isinstance(sealed, dict) or not sealed:
        raise ValueError("it lists no files")
    for entry in sealed.values():
        if not (isinstance(entry, list) and [type(part) for part in entry] == [int, str]):
            raise ValueError("it does not hold sizes and checksums")
    return {name: tuple(entry) for name, entry in sealed.items()}


def _files(directory: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Every file below a directory that is sealed, with its path in it.

    Raises:
        ValueError: a link, which may lead anywhere.
    """
    for path in directory.iterdir():
        name = f"{prefix}{path.name}"
        if os.path.islink(os.fspath(path)):  # in a bucket there are none
            raise ValueError(f"{name} is a link")
        if path.is_dir():
            yield from _files(path, f"{name}/")
        elif name not in _UNSEALED:
            yield name, path


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SealedState(ocp.StandardCheckpointHandler):
    """Orbax's handler of a tree of arrays, which seals what it has written."""

    def finalize(self, directory: epath.Path) -> None:
        """Orbax calls this when all is written, before it gives the directory its name."""
        super().finalize(directory)
        seal(directory)


class SealedJson(ocp.JsonCheckpointHandler):
    """Orbax's handler of JSON, which seals what it has written."""

    def finalize(self, directory: epath.Path) -> None:
        """Orbax calls this when all is written, before it gives the directory its name."""
        super().finalize(directory)
        seal(directory)


# Orbax finds a handler by the type of its arguments, so each handler needs types of its own.
@ocp.args.register_with_handler(SealedState, for_save=True)
class SaveState(ocp.args.StandardSave):
    """Arguments of `SealedState`: the tree."""


@ocp.args.register_with_handler(SealedState, for_restore=True)
class RestoreState(ocp.args.StandardRestore):
    """Arguments of `SealedState`: shapes, types and shardings of the tree."""


@ocp.args.register_with_handler(SealedJson, for_save=True)
class SaveJson(ocp.args.JsonSave):
    """Arguments of `SealedJson`: what to write."""


@ocp.args.register_with_handler(SealedJson, for_restore=True)
class RestoreJson(ocp.args.JsonRestore):
    """Arguments of `SealedJson`."""
