"""Where prepared data is kept between runs, and how files appear there: whole or not at all."""

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from xtremes_jax.errors import InputError

_ABANDONED_AFTER = 24 * 3600
"""Seconds after which a directory that is still being made is nobody's: its process was killed."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/xtremes_jax`, or `~/.cache/xtremes_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xtremes_jax"


def write_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text so that no reader, and no second writer, ever sees half of it.

    Raises:
        OSError: The directory cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def build_directory(target: Path, fill: Callable[[Path], None]) -> Path:
    """Makes a directory once: whole or not at all, readable by everybody, nothing left behind when it fails.

    Several processes may do so at the same time: the one that is done first wins, and the others take its directory.

    Args:
        target: The directory; nothing happens if it is there.
        fill: Writes the contents into the empty directory it is given. What it raises is passed on.

    Returns:
        `target`.

    Raises:
        InputError: Its parent cannot be made or written.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error}. Give a directory that can be written by --cache_dir."
        ) from error
    try:
        fill(building)
        os.chmod(building, 0o755)  # mkdtemp's is for its owner alone
        try:
            os.rename(building, target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _remove_abandoned(target: Path) -> None:
    """Removes what killed processes have left of the same directory; others may be making it at this moment."""
    for left in target.parent.glob(f".{glob.escape(target.name)}-*"):
        with suppress(OSError):  # another process may have been quicker
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(left)
