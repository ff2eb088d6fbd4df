"""The readers by name; a reader's module is imported when the reader is asked for."""

import importlib

from fuzzing.reader import Reader

_MODULES = {
    "audio": ("sound", 0.24),
    "durations": ("sound", 0.02),
    "manifest": ("tables", 0.16),
    "transcripts": ("tables", 0.05),
    "archive": ("archives", 0.06),
    "saved": ("archives", 0.03),
    "parquet": ("archives", 0.01),
    "weights": ("weights", 0.17),
    "config": ("configs", 0.12),
    "tokenizer": ("configs", 0.03),
    "arguments": ("commands", 0.07),
    "record": ("commands", 0.04),
}

NAMES = {name: share for name, (_, share) in _MODULES.items()}
"""Reader -> its share of all inputs."""


def load(name: str) -> Reader:
    """The reader of that name."""
    return importlib.import_module(f"fuzzing.{_MODULES[name][0]}").READERS[name]
