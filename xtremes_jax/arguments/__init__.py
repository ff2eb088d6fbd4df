"""Flags of `xtremes_jax.train` and `xtremes_jax.evaluate`: dataclasses, old names, JSON files, validation."""

from xtremes_jax.arguments.build import describe, parse_arguments, parse_evaluate_arguments, steps_between
from xtremes_jax.arguments.fields import Arguments, DataArguments, ModelArguments, TrainingArguments

__all__ = [
    "Arguments",
    "DataArguments",
    "ModelArguments",
    "TrainingArguments",
    "describe",
    "parse_arguments",
    "parse_evaluate_arguments",
    "steps_between",
]
