"""Going on from a checkpoint: its state, and whether it belongs to this run."""

import logging
from typing import Any

import jax

from xtremes_jax.arguments import Arguments, ModelArguments, describe
from xtremes_jax.assembly import Network
from xtremes_jax.corpus import Corpus, SkippedClips
from xtremes_jax.course import Course
from xtremes_jax.errors import InputError
from xtremes_jax.training.meter import Note
from xtremes_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def resume(
    arguments: Arguments, corpus: Corpus, course: Course, network: Network, skipped: SkippedClips
) -> tuple[TrainState, Note]:
    """The state to start from, and what its checkpoint says of the loop.

    The course's `best` is filled in, and so are the clips that were left out by then.

    Raises:
        InputError: the checkpoint was trained on another vocabulary, other classes or another language's adapters, or
            with low-rank factors that counted otherwise.
    """
    source, step, checkpoints, best = course.source, course.begin, course.checkpoints, course.best
    if source is None:
        return course.optimization.first_state(network), Note()
    # A checkpoint takes their place: freed first, so that two copies are never held at once.
    jax.tree.map(lambda array: array.delete(), (network.trainable, network.frozen))
    state, progress = source.restore(step, course.optimization.abstract_state)
    logger.info("Going on from step %s (%s)", step, source.directory / str(step))
    if progress["labels"] != labels_of(corpus):
        raise InputError(
            f"The checkpoint {source.directory / str(step)} was trained on another vocabulary or other classes than "
            "the splits of this run give. Use the same data and splits, or another --output_dir."
        )
    _check_same_model(arguments.model, progress["arguments"], f"{source.directory / str(step)}")
    _warn_of_another_order(arguments, progress)
    checkpoints.delete_after(step)
    skipped.go_on(progress["skipped"])
    same_metric = progress["arguments"]["metric_for_best_model"] == arguments.training.metric_for_best_model
    if same_metric and (wrong := _best_is_gone(progress["best"]["step"], course)):
        logger.warning(
            "The best checkpoint so far (step %d, %s %.4f) %s. The best of those to come takes its place.",
            progress["best"]["step"], arguments.training.metric_for_best_model, progress["best"]["score"], wrong,
        )  # fmt: skip
    elif same_metric:
        best.step, best.score = progress["best"]["step"], progress["best"]["score"]
    return state, Note(**progress["loop"])


def _check_same_model(model: ModelArguments, before: dict[str, Any], checkpoint: str) -> None:
    """Raises `InputError` for flags that make another model of the same parameters."""
    for name in ("target_lang", *(["lora_alpha"] if model.lora_rank is not None else [])):
        if before.get(name) != getattr(model, name):
            raise InputError(
                f"The checkpoint {checkpoint} was trained with --{name} {before.get(name)}, and this run has "
                f"{getattr(model, name)}. Give the same, or another --output_dir."
            )


def _best_is_gone(step: int | None, course: Course) -> str | None:
    """Why the best checkpoint cannot be gone back to; None if it can, or if there is none."""
    if step is None or (step == course.begin and course.source is course.checkpoints):  # that one has been read
        return None
    if course.source is not course.checkpoints or step not in course.checkpoints.steps():
        return f"does not lie in {course.checkpoints.directory}"
    wrong = course.checkpoints.damage(step, contents=False)  # they are read where it is gone back to, if ever
    return wrong and f"is damaged: {wrong}"


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
