"""The course of a training run: its batches and updates, where it begins, its checkpoints, and the best of them."""

import dataclasses
import logging
import math

import jax

from xtremes_jax.arguments import Arguments
from xtremes_jax.assembly import Network, Optimization, make_optimization, make_train_loader, run_length
from xtremes_jax.corpus import Corpus
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.errors import InputError
from xtremes_jax.run_directory import RunDirectory
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
    begin: int
    """Its global step, or 0."""

    def epoch_of(self, step: int) -> tuple[float, bool]:
        """Epochs done after `step` steps, and whether one ended just there."""
        return step / self.loader.steps_per_epoch, step % self.loader.steps_per_epoch == 0


def make_course(arguments: Arguments, network: Network, corpus: Corpus, directory: RunDirectory) -> Course:
    """The course of these arguments, from the newest checkpoint if there is one."""
    training = arguments.training
    loader = make_train_loader(arguments, corpus, network.mesh)
    total_steps = run_length(arguments, loader.steps_per_epoch)
    optimization = make_optimization(arguments, network, total_steps)
    best = Best()
    checkpoints = Checkpoints(directory.checkpoints, keep=training.save_total_limit, best=lambda: best.step)
    source, begin = find_checkpoint(training.resume_from_checkpoint, checkpoints)
    return Course(loader, total_steps, optimization, checkpoints, best, source, begin)


def find_checkpoint(wanted: str | None, checkpoints: Checkpoints) -> tuple[Checkpoints | None, int]:
    """Where the checkpoint to go on from lies, and its global step; (None, 0) if the run begins anew.

    Raises:
        InputError: there is no such checkpoint, or none that is undamaged.
    """
    if wanted not in (None, "True", "true"):
        return Checkpoints.at(wanted)
    step = checkpoints.newest_sound()
    if wanted is not None and step is None:
        raise InputError(f"--resume_from_checkpoint: there is no checkpoint in {checkpoints.directory}.")
    return (None, 0) if step is None else (checkpoints, step)


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
