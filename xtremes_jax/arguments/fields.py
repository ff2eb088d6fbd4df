"""All flags of one run together; each is a field of one of the three groups."""

from dataclasses import dataclass

from xtremes_jax.arguments.data import DataArguments
from xtremes_jax.arguments.model import ModelArguments
from xtremes_jax.arguments.training import TrainingArguments
from xtremes_jax.tasks import Selection


@dataclass(frozen=True)
class Arguments:
    """All flags of one run, checked and made definite.

    What a flag leaves open is filled in: task, language, config and target column from `selection`; `do_eval` when
    there is an `eval_strategy`; `eval_steps` from `logging_steps`; `remat_policy`; `data_seed`; `metric_for_best_model`
    (without its "eval_") and `greater_is_better` when the best model is wanted; `report_to` as () or ("tensorboard",).
    """

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    selection: Selection
    notes: tuple[str, ...] = ()
    """Sentences for the log: flags that were given but change nothing in this run, and why."""
