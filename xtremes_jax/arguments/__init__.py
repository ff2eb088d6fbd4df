"""Flags of `xtremes_jax.train`, `evaluate` and `plan`: dataclasses, old names, JSON files, validation."""

from xtremes_jax.arguments.build import describe, parse_arguments, parse_evaluate_arguments, steps_between
from xtremes_jax.arguments.fields import Arguments, DataArguments, ModelArguments, TrainingArguments
from xtremes_jax.arguments.plan import PlanArguments, parse_plan_arguments

__all__ = [
    "Arguments",
    "DataArguments",
    "ModelArguments",
    "PlanArguments",
    "TrainingArguments",
    "describe",
    "parse_arguments",
    "parse_evaluate_arguments",
    "parse_plan_arguments",
    "steps_between",
]
