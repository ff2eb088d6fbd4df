"""A dataclass field that is a command-line flag: its help, its old names, and the values it may take."""

import dataclasses
from typing import Any


def flag(
    default: Any,
    help: str,
    *,
    old: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    scoring: bool = False,
    needs: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with this default that doubles as a flag of the same name.

    Args:
        help: one sentence for `--help` and the README.
        old: other names for the same flag, from older or newer versions of Transformers.
        choices: the only words allowed.
        at_least, above, at_most, below: bounds of a number.
        scoring: whether `python -m xtremes_jax.evaluate` takes the flag too.
        needs: what a run must do for the flag to change anything, in words of `checks.NEEDS`.
    """
    metadata = {
        "help": help,
        "old": old,
        "choices": choices,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
        "scoring": scoring,
        "needs": needs,
    }
    return dataclasses.field(default=default, metadata=metadata)
