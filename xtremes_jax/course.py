"""The course of a training run: its batches and updates, where it begins, its checkpoints, and the best of them."""

import dataclasses
import logging
import math
from typing import Any, NamedTuple

import jax

from xtremes_jax.arguments import Arguments
from xtremes_jax.assembly import Network, make_train_loader, run_length
from xtremes_jax.corpus import Corpus
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.errors import InputError
from xtremes_jax.optimization import Optimization, make_optimization
from xtremes_jax.run_directory import RunDirectory
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.places import place
from xtremes_jax.training.state import TrainState, parameter_count

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


class BatchSplit(NamedTuple):
    """How the batch of an update is worked off on each device."""

    clips: int
    """`--per_device_train_batch_size`; without a meaning beside `--max_batch_seconds`."""
    micro_batches: int
    """`--gradient_accumulation_steps`."""

    @classmethod
    def of(cls, arguments: Arguments) -> "BatchSplit":
        """What these arguments say."""
        return cls(arguments.training.per_device_train_batch_size, arguments.training.gradient_accumulation_steps)


@dataclasses.dataclass(frozen=True)
class Course:
    """What a training run follows: its batches, its updates, and the checkpoints on the way."""

    loader: TrainLoader
    total_steps: int
    optimization: Optimization
    checkpoints: Checkpoints
    best: Best
    """Kept up to date."""
    source: Checkpoints | None
    """Where the checkpoint lies that the run goes on from."""
    origin: str | None
    """What `--resume_from_checkpoint` has named when this run began, if anything."""
    begin: int
    """Its global step, or 0."""
    arguments: Arguments
    """Of the run, with the split of a batch that these devices need for it to be the one that the run began with."""
    asked: BatchSplit
    """What the command line says of that."""

    def epoch_of(self, step: int) -> tuple[float, bool]:
        """Epochs done after `step` steps, and whether one ended just there."""
        return step / self.loader.steps_per_epoch, step % self.loader.steps_per_epoch == 0


def make_course(arguments: Arguments, network: Network, corpus: Corpus, directory: RunDirectory) -> Course:
    """The course of these arguments, from the newest checkpoint if there is one."""
    training = arguments.training
    best = Best()
    checkpoints = Checkpoints(directory.checkpoints, keep=training.save_total_limit, best=lambda: best.step)
    source, begin, origin = find_checkpoint(training.resume_from_checkpoint, checkpoints)
    asked = BatchSplit.of(arguments)
    if source is not None:
        arguments = with_the_same_batches(arguments, source.progress(begin), jax.device_count())
    loader = make_train_loader(arguments, corpus, network.mesh)
    total_steps = run_length(arguments, loader.steps_per_epoch)
    optimization = make_optimization(arguments, network, total_steps)
    logger.info(
        "Trained parameters: %s; the optimizer's state for them: %s bytes",
        f"{parameter_count(network.trainable):,}", f"{optimization.optimizer_bytes:,}",
    )  # fmt: skip
    return Course(loader, total_steps, optimization, checkpoints, best, source, origin, begin, arguments, asked)


def with_the_same_batches(arguments: Arguments, progress: dict[str, Any], devices: int) -> Arguments:
    """The arguments of a run that goes on with another number of devices, so that its batches stay what they were.

    A batch of all devices is split among more or fewer of them: into as few micro-batches as there can be without more
    clips at a time on a device than the command line allows. What a step computes does not depend on that. With the
    devices of the last time the split stays that of the last time. A command line that asks for another batch than it
    did before gets it.

    Args:
        arguments: of this command line.
        progress: of the checkpoint that it goes on from.
        devices: of this run.
    """
    asked, before = BatchSplit.of(arguments), BatchSplit(**progress["split"])
    if BatchSplit(**progress["asked"]) != asked:
        return arguments
    pieces = before.micro_batches * progress["devices"]
    if progress["devices"] == devices:  # perhaps not those that the run began with
        splits = iter([before])
    elif arguments.data.max_batch_seconds is None:
        clips = before.clips * pieces
        splits = (
            BatchSplit(clips // (devices * count), count)
            for count in range(1, clips // devices + 1)
            if clips % (devices * count) == 0 and clips // (devices * count) <= asked.clips
        )
    else:
        splits = (BatchSplit(before.clips, pieces // devices) for _ in range(pieces % devices == 0))
    split = next(splits, None)
    if split is None or split == asked:
        return arguments
    logger.info(
        "The last steps were made on %d devices. On %d, %d micro-batches of %d clips a device make the same batches.",
        progress["devices"], devices, split.micro_batches, split.clips,
    )  # fmt: skip
    training = dataclasses.replace(
        arguments.training, per_device_train_batch_size=split.clips, gradient_accumulation_steps=split.micro_batches
    )
    return dataclasses.replace(arguments, training=training)


def find_checkpoint(wanted: str | None, checkpoints: Checkpoints) -> tuple[Checkpoints | None, int, str | None]:
    """Where the checkpoint to go on from lies, its global step, and what the run has been told to go on from at first.

    (None, 0, None) if the run begins anew. A command that names a checkpoint may be given again, as a queue does: it
    goes on from the newest checkpoint that it has made itself.

    Args:
        wanted: `--resume_from_checkpoint`.
        checkpoints: the run's own.

    Raises:
        InputError: there is no such checkpoint, or none that is undamaged.
    """
    named, newest = None if wanted in (None, "True", "true") else str(place(wanted)), None
    if named is None or named == (checkpoints.newest_progress() or {}).get("origin"):
        try:
            newest = checkpoints.newest_sound()
        except InputError:
            if named is None:
                raise  # else that is why another is named
    origin = None if newest is None else checkpoints.progress(newest)["origin"]
    if named is not None and named != origin:
        return *Checkpoints.at(named), named
    if wanted is not None and newest is None:
        raise InputError(f"--resume_from_checkpoint: there is no checkpoint in {checkpoints.directory}.")
    if named is not None:
        logger.info(
            "This run has begun from %s and goes on where it has come to. To begin there once more, give another "
            "--output_dir, or remove the checkpoints of later steps.", named,
        )  # fmt: skip
    return (None, 0, None) if newest is None else (checkpoints, newest, origin)


def go_back_to_best(metric: str, course: Course, state: TrainState) -> TrainState:
    """The best checkpoint's state in place of the last one, if there is a better one."""
    best, checkpoints = course.best, course.checkpoints
    if best.step is None:
        logger.warning("--load_best_model_at_end: no checkpoint was scored, so the run ends with its last parameters.")
        return state
    if best.step == int(state.step):
        return state
    if best.step not in checkpoints.steps():
        logger.warning(
            "--load_best_model_at_end: the best checkpoint (step %d, %s %.4f) is no longer in %s, so the run ends with "
            "its last parameters.", best.step, metric, best.score, checkpoints.directory,
        )  # fmt: skip
        return state
    if wrong := checkpoints.damage(best.step):
        logger.warning(
            "--load_best_model_at_end: the best checkpoint (step %d, %s %.4f) is damaged: %s. The run ends with its "
            "last parameters.", best.step, metric, best.score, wrong,
        )  # fmt: skip
        return state
    logger.info("Going back to the best checkpoint: step %d, %s %.4f", best.step, metric, best.score)
    # Freed first, so that two states are never held at once.
    jax.tree.map(lambda array: array.delete(), state)
    return checkpoints.restore(best.step, course.optimization.abstract_state)[0]
