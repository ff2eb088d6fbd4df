"""From what was given to what a run is: `parse_arguments` for training, `parse_evaluate_arguments` for scoring."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from xtremes_jax.arguments import checks
from xtremes_jax.arguments.fields import Arguments, DataArguments, ModelArguments, TrainingArguments
from xtremes_jax.arguments.parse import FLAGS, GROUPS, Given, read_arguments
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import Selection, select_task


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """The arguments of `python -m xtremes_jax.train`.

    Args:
        argv: the command line without the program's name: flags, or a `*.json` file of them and then flags that
            override the file.

    Raises:
        InputError: anything that would stop the run later, found now: unknown or refused flags (with the nearest name,
            or the reason), wrong types or values, contradictions, an unknown task, language or metric.
        SystemExit: after `--help`.
    """
    given = read_arguments(argv, "python -m xtremes_jax.train")
    checks.check_launcher()
    model, data, training = _fill(given)
    checks.check_training(training, given)
    checks.check_model(model, training, given)
    checks.check_data(data, given)
    checks.check_scored_batches(data, given)
    selection = _select(data)
    checks.check_translation(model, training, selection, given)
    checks.check_windows(training, selection, given)
    checks.check_adapters(model, selection, given)
    checks.check_frozen(model, given)
    checks.check_frontend_cache(model, given)
    training = _complete(training, selection)
    checks.check_best_model(training, selection, given)
    arguments = Arguments(model, _name_selection(data, selection), training, selection)
    checks.check_retrieval(arguments, given)
    notes = checks.find_idle(arguments, given) + _warn_direction(training, selection, given)
    return dataclasses.replace(arguments, notes=notes)


def parse_evaluate_arguments(argv: Sequence[str]) -> Arguments:
    """The arguments of `python -m xtremes_jax.evaluate`, which scores `--predict_split_name` and trains nothing.

    Flags that only mean something in training are refused; `do_predict` is set in the result.

    Raises:
        InputError: as `parse_arguments`, and for flags of training.
        SystemExit: after `--help`.
    """
    given = read_arguments(argv, "python -m xtremes_jax.evaluate", scoring=True)
    for name in given.values:
        if not FLAGS[name].metadata["scoring"]:
            hint = " Name the split to score with --predict_split_name." if name == "eval_split_name" else ""
            raise InputError(f"{given.source(name)} is a flag of training, not of scoring. Drop it.{hint}")
    checks.check_launcher()
    if given.values.get("do_predict") is False:
        raise InputError(f"{given.source('do_predict')} false leaves nothing to do. Drop it.")
    model, data, training = _fill(given)
    checks.check_scored_batches(data, given)
    training = dataclasses.replace(training, do_predict=True)
    if model.model_name_or_path is None:
        raise InputError("There is no model to score. Add --model_name_or_path with a directory or a hub id.")
    checks.check_training(training, given)
    selection = _select(data)
    checks.check_translation(model, training, selection, given)
    checks.check_windows(training, selection, given)
    checks.check_adapters(model, selection, given)
    arguments = Arguments(model, _name_selection(data, selection), _complete(training, selection), selection)
    checks.check_retrieval(arguments, given)
    return dataclasses.replace(arguments, notes=checks.find_idle(arguments, given))


def _fill(given: Given) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    by_group: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, value in given.values.items():
        by_group[FLAGS[name].group][name] = value
    model, data, training = (cls(**by_group[group]) for group, cls in GROUPS.items())
    return model, data, training


def _select(data: DataArguments) -> Selection:
    return select_task(
        task=data.task,
        dataset_config_name=data.dataset_config_name,
        language=data.language,
        language_group=data.language_group,
        target_column_name=data.target_column_name,
        dataset_name=data.dataset_name,
        key_language=data.key_language,
    )


def _name_selection(data: DataArguments, selection: Selection) -> DataArguments:
    return dataclasses.replace(
        data,
        task=selection.task.name,
        dataset_config_name=selection.config_name,
        language=selection.language,
        target_column_name=selection.target_column,
        chars_to_ignore=data.chars_to_ignore or (),
    )


def _complete(training: TrainingArguments, selection: Selection) -> TrainingArguments:
    """What was left open, made definite: see `Arguments`."""
    metric = training.metric_for_best_model
    metric = metric.removeprefix("eval_") if metric else ("loss" if training.load_best_model_at_end else None)
    greater = training.greater_is_better
    if greater is None and metric is not None:
        greater = _points_up(metric, selection)
    return dataclasses.replace(
        training,
        do_eval=training.do_eval or training.eval_strategy != "no",
        eval_steps=training.logging_steps if training.eval_steps is None else training.eval_steps,
        remat_policy=training.remat_policy or ("full" if training.gradient_checkpointing else "none"),
        metric_for_best_model=metric,
        greater_is_better=greater,
        data_seed=training.seed if training.data_seed is None else training.data_seed,
        report_to=("tensorboard",) if set(training.report_to) - {"none"} else (),
    )


def _points_up(metric: str, selection: Selection) -> bool:
    """Whether more of a metric is better: error rates and the loss fall, accuracy, F1 and precision rise."""
    rises = selection.task.greater_is_better and not metric.endswith("_error")
    return metric in selection.task.metrics and rises


def _warn_direction(training: TrainingArguments, selection: Selection, given: Given) -> tuple[str, ...]:
    metric = training.metric_for_best_model
    if metric is None or training.greater_is_better == _points_up(metric, selection):
        return ()
    better = "greater" if _points_up(metric, selection) else "smaller"
    return (
        f"{given.source('greater_is_better')} {training.greater_is_better} makes the worst checkpoint the best one: a "
        f"{better} {metric} is better. It is done as asked.",
    )


def describe(arguments: Arguments, *, only_changed: bool = False) -> dict[str, Any]:
    """Every flag (or every one that is not at its default) and its value, for checkpoints and model cards.

    The token is left out: it is nobody's business.
    """
    return {
        field.name: getattr(group, field.name)
        for group in (arguments.model, arguments.data, arguments.training)
        for field in dataclasses.fields(group)
        if field.name != "hub_token" and not (only_changed and getattr(group, field.name) == field.default)
    }


def steps_between(value: float, total_steps: int) -> int:
    """Updates that `eval_steps`, `save_steps` or `logging_steps` stands for in a run of `total_steps` updates.

    A number below 1 is a share of the run, rounded up, as in Transformers.
    """
    if value >= 1:
        return int(value)
    # 0.1 of 30 is 3: rounding to millionths first keeps the ceiling clear of binary fractions.
    return max(1, -(-round(value * 1_000_000) * total_steps // 1_000_000))
