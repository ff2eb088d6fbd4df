"""Paths that people give: of this machine or of a bucket."""

import importlib.util
import os
from pathlib import Path

from etils import epath

from xtremes_jax.errors import InputError


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is one of a bucket."""
    return "://" in os.fspath(path)


def place(path: str | os.PathLike) -> epath.Path:
    """The absolute path, with the same methods wherever it is.

    Raises:
        InputError: it is of another kind of bucket than Google's, or what reads those is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return epath.Path(Path(text).expanduser().absolute())
    if not text.startswith("gs://"):
        raise InputError(f"{text}: of buckets, those of Google Cloud Storage can be used (gs://BUCKET/FOLDER).")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{text}: to read and write buckets, install gcsfs (pip install gcsfs).")
    return epath.Path(text)
