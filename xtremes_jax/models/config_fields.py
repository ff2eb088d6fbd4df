"""Checks of configuration fields by their declared types, shared by all configurations."""

import dataclasses
import math
import reprlib
from typing import Any

from xtremes_jax.errors import InputError

MAY_BE_ZERO = (
    "mask_time_min_masks",
    "mask_feature_min_masks",
    "output_hidden_size",
    "min_length",
    "no_repeat_ngram_size",
)
"""Whole numbers whose least value is 0, besides the ids (`*_token_id`); of all others it is 1."""
LARGEST_SIZE = 2**20
"""Far above any real model, and far below what overflows."""
MOST_ITEMS = 64
MOST = {"num_hidden_layers": 1024, "decoder_layers": 1024, "num_adapter_layers": MOST_ITEMS, "num_beams": 1024}
"""Whole numbers with a lower limit than `LARGEST_SIZE`."""
MOST_PARAMETERS = 20_000_000_000
"""Of one half of a model: nine times the largest wav2vec 2.0. Each size may be sane and their product absurd."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80


def check_field(field: dataclasses.Field, value: Any) -> None:
    """Raises `InputError` unless a field's value is of its type, numbers are finite, and sizes sane."""
    least = 0 if field.name in MAY_BE_ZERO or field.name.endswith("_token_id") else 1
    most = MOST.get(field.name, LARGEST_SIZE)
    if field.type is int:
        wanted, holds = f"a whole number from {least} to {most}", _is_size(value, least, most)
    elif field.type == int | None:
        wanted, holds = f"a whole number from {least} to {most}, or null", value is None or _is_size(value, least, most)
    elif field.type is float:
        wanted = "a finite number"
        holds = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    elif field.type is bool:
        wanted, holds = "true or false", isinstance(value, bool)
    elif field.type is str:
        wanted, holds = "a string", isinstance(value, str)
    elif field.type == tuple[int, ...]:
        wanted = f"a list of 1 to {MOST_ITEMS} whole numbers from 1 to {LARGEST_SIZE}"
        holds = isinstance(value, tuple) and 1 <= len(value) <= MOST_ITEMS
        holds = holds and all(_is_size(item, 1, LARGEST_SIZE) for item in value)
    else:  # the head, which has a check of its own
        return
    if not holds:
        raise InputError(f"{field.name} is {shown(value)}; it must be {wanted}.")


def from_json(field: dataclasses.Field, value: Any) -> Any:
    """A field's value from its JSON, which has lists for tuples, and no difference between 0 and 0.0."""
    value = tuple(value) if isinstance(value, list) else value
    check_field(field, value)
    return float(value) if field.type is float else value


def check_parameters(count: int) -> None:
    """Raises `InputError` where a model has more parameters than any has, before memory is asked for."""
    if count > MOST_PARAMETERS:
        raise InputError(
            f"The configuration describes {count:.3g} parameters, more than any model has ({MOST_PARAMETERS:.0e} at "
            "most). Check its sizes."
        )


def _is_size(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def shown(value: Any) -> str:
    """A value in an error message, shortened; however deep it is, it is looked into no deeper than that takes."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
