"""Going on from a checkpoint: which one, and whether it belongs to this run."""

import dataclasses
import logging
import math
from typing import Any

import jax

from xtremes_jax.arguments import Arguments, describe
from xtremes_jax.assembly import Network, Optimization
from xtremes_jax.corpus import Corpus
from xtremes_jax.errors import InputError
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.state import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Best:
    """The best evaluation so far."""

    score: float | None = None
    step: int | None = None

    def offer(self, step: int, score: float | None, greater_is_better: bool | None) -> None:
        """Takes a later score over if it is better; a tie stays with the earlier step, and NaN is never best."""
        if score is None or not math.isfinite(score):
            return
        if self.score is None or (score > self.score if greater_is_better else score < self.score):
            self.score, self.step = score, step


def find_checkpoint(wanted: str | None, checkpoints: Checkpoints) -> tuple[Checkpoints | None, int]:
    """Where the checkpoint to go on from lies, and its global step; (None, 0) if the run begins anew.

    Raises:
        InputError: there is no such checkpoint.
    """
    if wanted not in (None, "True", "true"):
        return Checkpoints.at(wanted)
    step = checkpoints.latest()
    if wanted is not None and step is None:
        raise InputError(f"--resume_from_checkpoint: there is no checkpoint in {checkpoints.directory}.")
    return (None, 0) if step is None else (checkpoints, step)


def resume(
    arguments: Arguments,
    corpus: Corpus,
    source: Checkpoints | None,
    step: int,
    checkpoints: Checkpoints,
    optimization: Optimization,
    network: Network,
    best: Best,
) -> tuple[TrainState, bool]:
    """The state to start from, and whether its evaluation is still owed. `best` is filled in.

    Raises:
        InputError: the checkpoint was trained on another vocabulary or other classes.
    """
    training = arguments.training
    if source is None:
        return optimization.first_state(network), False
    # A checkpoint takes their place: freed first, so that two copies are never held at once.
    jax.tree.map(lambda array: array.delete(), (network.trainable, network.frozen))
    state, progress = source.restore(step, optimization.abstract_state)
    logger.info("Going on from step %s (%s)", step, source.directory / str(step))
    if progress["labels"] != labels_of(corpus):
        raise InputError(
            f"The checkpoint {source.directory / str(step)} was trained on another vocabulary or other classes than "
            "the splits of this run give. Use the same data and splits, or another --output_dir."
        )
    _warn_of_another_order(arguments, progress)
    checkpoints.delete_after(step)
    same_metric = progress["arguments"]["metric_for_best_model"] == training.metric_for_best_model
    if same_metric and progress["best"]["step"] in checkpoints.steps():
        best.step, best.score = progress["best"]["step"], progress["best"]["score"]
    return state, progress.get("evaluation_owed", False)


def labels_of(corpus: Corpus) -> Any:
    """What the head's outputs stand for: the vocabulary, or the classes in order."""
    return corpus.label_names if corpus.tokenizer is None else corpus.tokenizer.get_vocab()


_ORDER = (
    "dataset_name dataset_config_name language_group train_split_name max_train_samples max_duration_in_seconds "
    "min_duration_in_seconds max_batch_seconds max_buckets group_by_length dataloader_drop_last data_seed key_language"
).split()
"""Flags that, with the rows of a global batch, decide which clips a step gets."""


def _warn_of_another_order(arguments: Arguments, progress: dict[str, Any]) -> None:
    """Says so when a run goes on with other batches than it began with: some clips then come twice, others not."""
    before, now = progress["arguments"], describe(arguments)

    def rows(values: dict[str, Any], devices: int) -> int:
        return values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * devices

    changed = [name for name in _ORDER if before.get(name, now[name]) != now[name]]
    if rows(before, progress["devices"]) != rows(now, jax.device_count()):
        changed.append("the number of clips in a step over all devices")
    if changed:
        logger.warning(
            "The run began with other batches (%s): in this epoch, some clips will come twice and others not at all.",
            ", ".join(changed),
        )
