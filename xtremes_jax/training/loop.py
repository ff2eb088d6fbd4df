"""The training loop: batches in, steps, logging, evaluation and checkpoints at their times."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xtremes_jax.batch import Batch
from xtremes_jax.errors import InputError
from xtremes_jax.training.ahead import CompilationFailed, OutOfMemory, abstract, is_out_of_memory, shape_of
from xtremes_jax.training.meter import FitReport, Meter, Note
from xtremes_jax.training.signals import Interrupted, StopRequest
from xtremes_jax.training.state import TrainState
from xtremes_jax.training.step import StepMetrics

_QUEUED = 2
"""Steps that the devices have before them at most: the one that runs, and the next."""


_LINES, _JUMP, _SMALL_LOSS = 5, 3.0, 0.1
"""A loss is said to have jumped when it is 3 times the median of the last 5 log lines, or of 0.1 where that is more."""

_NOTHING = Note()

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """When a run logs, evaluates and saves, in global steps. None is never; "epoch" is at the end of each epoch."""

    total_steps: int
    logging_steps: int | str | None
    eval_steps: int | str | None
    save_steps: int | str | None
    log_first: bool = False
    max_nonfinite_steps: int = 100
    save_seconds: float | None = None
    """Age of the last checkpoint at which another is due, whatever the step."""

    def due(self, every: int | str | None, step: int, epoch_ended: bool) -> bool:
        """Whether something done every `every` steps is due after `step` steps. The run's end ends its last epoch."""
        if every is None:
            return False
        return (epoch_ended or step >= self.total_steps) if every == "epoch" else step % every == 0

    def is_checkpoint_planned(self, step: int, epoch_ended: bool) -> bool:
        """Whether a run that nothing stops has a checkpoint after `step` steps, whatever the clock says."""
        last = self.save_steps is not None and step >= self.total_steps
        return last or self.due(self.save_steps, step, epoch_ended)

    def is_log_due(self, step: int, epoch_ended: bool) -> bool:
        """Whether there is a log line after `step` steps."""
        if self.logging_steps is not None and step >= self.total_steps:
            return True
        return self.due(self.logging_steps, step, epoch_ended) or (self.log_first and step == 1)


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; plain functions of the entry point.

    `log(step, epoch, values)`, `evaluate(state, step, epoch) -> score or None`, `save(state, step, score, note)`,
    `agree(clips, old_at) -> old_at` after each step, with those of its clips that could not be decoded and this step
    where the last checkpoint is old (else 0), tells the last step at which any process has found it old: all get the
    same answer, perhaps some steps later, and have the same `stop.received` afterwards; `consumed(step, sample_ids)`
    for the clips that a step is made with, `nonfinite(step, count) -> path` for those of the last `count` steps, which
    are given up on, `advance()` after each step, for the progress bar, `started(report)` when the first step is done,
    with the time that it alone has waited and compiled.
    """

    log: Callable[[int, float, dict[str, Any]], None]
    evaluate: Callable[[TrainState, int, float], float | None]
    save: Callable[[TrainState, int, float | None, Note], None]
    agree: Callable[[Sequence, int], int]
    consumed: Callable[[int, Sequence[int]], None]
    nonfinite: Callable[[int, int], Path]
    advance: Callable[[], None]
    started: Callable[[FitReport], None] = lambda report: None


def fit(
    state: Any,
    *,
    start_step: int,
    train_step: Callable,
    batches: Iterable,
    schedule: Schedule,
    hooks: Hooks,
    stop: StopRequest,
    epoch_of: Callable[[int], tuple[float, bool]],
    note: Note = _NOTHING,
) -> tuple[Any, FitReport]:
    """Runs steps `start_step` to `schedule.total_steps`, or until a stop is asked for, and saves in either case.

    Nothing is read back from the devices between log lines, so that the next step is always queued; and no more than
    the next one, so that time spent waiting for a batch is time that the loader was too slow.

    Args:
        state: a `TrainState`; the loop itself never looks into it.
        train_step: `(state, batch) -> (state, StepMetrics)`.
        batches: loaded batches of the global steps from `start_step` on.
        epoch_of: steps done -> (epochs done, whether an epoch ended just there).
        note: of the checkpoint that `state` comes from.

    Raises:
        InputError: too many clips turned out to be unreadable, or the gradients are no longer finite.
        OutOfMemory: of the devices.
        CompilationFailed: the step for a batch that has come cannot be compiled, or evaluation's. In each case, what
            has been trained is saved first.

    A signal that comes while a step waits for its batch or its program ends the loop too, before that step.
    """
    begun, report = time.perf_counter(), FitReport(loss_sum=note.loss_sum, logged_steps=note.logged_steps)
    meter = Meter() if note.unlogged is None else Meter.going_on(note.unlogged)
    progress = _Progress(state, hooks, stop, report, meter, step=start_step, saved=start_step)
    progress.losses.extend(note.losses)
    if note.evaluation_owed:
        progress.make_up_for_evaluation(schedule, *epoch_of(start_step))
    if start_step < schedule.total_steps:
        with _saved_in_the_end(progress, schedule):
            for loaded in _interruptible(batches, stop):
                progress.make_step(train_step, loaded)
                old_at = hooks.agree(loaded.skipped, progress.step if progress.is_old(schedule) else 0)
                if report.steps == 1:
                    jax.block_until_ready(progress.meter.pending)
                    report.first_step_seconds = time.perf_counter() - begun
                    hooks.started(report)
                epoch, epoch_ended = epoch_of(progress.step)
                progress.owed = schedule.due(schedule.eval_steps, progress.step, epoch_ended)
                progress.planned = schedule.is_checkpoint_planned(progress.step, epoch_ended)
                # Before the last checkpoint, which a run that has ended starts from.
                progress.settle(schedule, epoch, schedule.is_log_due(progress.step, epoch_ended))
                hooks.advance()
                # A checkpoint may have been made since.
                progress.pause(schedule, epoch, epoch_ended, save_now=old_at > progress.saved)
                if progress.step >= schedule.total_steps or stop.received is not None:
                    break
        report.runtime = time.perf_counter() - begun
    return progress.state, report


@dataclass
class _Progress:
    """How far a loop has come, the state there, and what is known of it."""

    state: Any
    hooks: Hooks
    stop: StopRequest
    report: FitReport
    meter: Meter
    step: int
    saved: int
    """Step of the newest checkpoint."""
    saved_at: float = field(default_factory=lambda: time.perf_counter())
    score: float | None = None
    """Of the evaluation at this step, if there was one."""
    owed: bool = False
    """Whether an evaluation was due at this step and has not been made."""
    planned: bool = False
    """Whether a checkpoint of this step is the schedule's, not a signal's, an error's or the clock's."""
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=_LINES))
    """Of the last log lines."""
    shapes: set[tuple] = field(default_factory=set)
    """Of the batches so far."""
    queued: deque[tuple[StepMetrics, Batch]] = field(default_factory=lambda: deque(maxlen=_QUEUED + 1))
    """Of the steps that may not be done yet: what each gives, and shapes of its batch."""

    def make_step(self, train_step: Callable, loaded: Any) -> None:
        """Queues one step and counts it; nothing is known of the state that it leads to.

        Returns when no more than `_QUEUED` steps are left to run. The devices always have the next one; and the host
        does not take batches faster than they are used: each would lie in the devices' memory until its step comes.
        """
        called = time.perf_counter()
        self.state, metrics = train_step(self.state, loaded.batch)
        self.queued.append((metrics, jax.tree.map(abstract, loaded.batch)))
        shape = shape_of(loaded.batch)
        if shape not in self.shapes:
            # A call returns before its step is done, unless the step has to be compiled.
            self.shapes.add(shape)
            self.meter.started += self.report.compiled(time.perf_counter() - called)
        self.meter.add(metrics, loaded)
        self.report.count(loaded)
        jax.block_until_ready(self.meter.pending[:-_QUEUED][-1:])
        self.step += 1
        self.score, self.owed = None, False
        self.hooks.consumed(self.step, loaded.sample_ids)

    def settle(self, schedule: Schedule, epoch: float, log_now: bool) -> None:
        """Logs when it is time and now and then looks at the losses.

        Raises:
            InputError: the gradients have not been finite for `max_nonfinite_steps` steps.
        """
        last = self.step >= schedule.total_steps
        if not (log_now or last or len(self.meter.pending) >= schedule.max_nonfinite_steps):
            return
        self.meter.fetch()
        if not self.meter.fetched:
            return
        streak = int(self.meter.fetched[-1].nonfinite_streak)
        if log_now:
            summary = self.meter.summary()
            self.hooks.log(self.step, epoch, summary)
            self._watch_for_a_jump(summary["loss"])
        if log_now or last or schedule.logging_steps is None:
            self.report.loss_sum += sum(self.meter.losses)
            self.report.logged_steps += len(self.meter.losses)
            self.meter = Meter()
        if streak >= schedule.max_nonfinite_steps:
            where = self.hooks.nonfinite(self.step, streak)
            raise InputError(
                f"The gradients of the last {streak} steps were not finite, so none of them changed the model; the run "
                f"stops at step {self.step}. The clips of these steps are listed in {where}. Lower --learning_rate, "
                "raise --warmup_steps, or compute in float32 or --bf16."
            )

    def _watch_for_a_jump(self, loss: float) -> None:
        """Warns of a log line's loss far above those of the lines before."""
        usual = float(np.median(self.losses)) if len(self.losses) == self.losses.maxlen else math.inf
        if loss > _JUMP * max(usual, _SMALL_LOSS):
            logger.warning(
                "The loss has jumped to %.4g at step %d, from about %.4g before. If it does not come back soon, lower "
                "--learning_rate or --max_grad_norm, or raise --warmup_steps, and go back to an earlier checkpoint "
                "(--resume_from_checkpoint).", loss, self.step, usual,
            )  # fmt: skip
        if math.isfinite(loss):
            self.losses.append(loss)

    def is_old(self, schedule: Schedule) -> bool:
        """Whether the last checkpoint was made so long ago that another is due at any step."""
        return schedule.save_seconds is not None and time.perf_counter() - self.saved_at >= schedule.save_seconds

    def pause(self, schedule: Schedule, epoch: float, epoch_ended: bool, save_now: bool) -> None:
        """Evaluates and saves where that is due after this step; the time is that of neither the step nor the next."""
        begun = time.perf_counter()
        if schedule.due(schedule.eval_steps, self.step, epoch_ended):
            self.evaluate(epoch)
        if save_now or schedule.due(schedule.save_steps, self.step, epoch_ended):
            self.save()
        self.meter.started += self.report.paused(time.perf_counter() - begun)

    def evaluate(self, epoch: float) -> None:
        """Scores the state, unless a signal comes first."""
        self.score, self.owed = None, True
        if self.stop.received is not None:
            return
        try:
            with self.stop.deferred(wait=False):
                self.score, self.owed = self.hooks.evaluate(self.state, self.step, epoch), False
        except Interrupted:
            pass

    def make_up_for_evaluation(self, schedule: Schedule, epoch: float, epoch_ended: bool) -> None:
        """Scores the state that an earlier process has left without, and hands it over with that."""
        self.planned = schedule.is_checkpoint_planned(self.step, epoch_ended)
        self.evaluate(epoch)
        self.save()

    def save(self) -> None:
        """Hands the state over, with what is known of it.

        Its score is told only where every run has a checkpoint: which is best must not depend on who stopped it when.
        """
        report = self.report
        note = Note(self.owed, self.meter.note(), report.loss_sum, report.logged_steps, list(self.losses))
        self.hooks.save(self.state, self.step, self.score if self.planned else None, note)
        self.saved, self.saved_at = self.step, time.perf_counter()

    def failed_batch(self) -> Batch | None:
        """Shapes of the batch whose step has failed on the devices; None if all that are queued can be done."""
        for metrics, batch in self.queued:
            try:
                jax.block_until_ready(metrics)
            except jax.errors.JaxRuntimeError:
                return batch
        return None

    def save_unless_saved(self) -> None:
        """The same, where this step has no checkpoint yet."""
        if self.saved != self.step:
            self.save()


@contextmanager
def _saved_in_the_end(progress: _Progress, schedule: Schedule) -> Iterator[None]:
    """However the loop ends, what has been trained is saved, unless a step that failed has taken the state with it.

    Without a `--save_strategy` and `--save_seconds` only what a signal breaks off is.
    """
    saves = schedule.save_steps is not None or schedule.save_seconds is not None
    try:
        yield
    except Interrupted:  # it waited for its next batch, or for that step's program
        pass
    except jax.errors.JaxRuntimeError as error:
        # Devices tell of a step's failure when its result is asked for, which may be a step or two later.
        if is_out_of_memory(error) and (batch := progress.failed_batch()) is not None:
            raise OutOfMemory(batch, error) from error
        raise
    except (InputError, CompilationFailed):
        gone = any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(progress.state))
        # With other processes none saves by itself, and these may be at another step by now.
        if saves and not gone and not progress.stop.shared:
            progress.save_unless_saved()
        raise
    if saves or progress.stop.received is not None:
        progress.save_unless_saved()


def _interruptible(batches: Iterable, stop: StopRequest) -> Iterator:
    """The same batches; a signal that comes while one is waited for raises `Interrupted`."""
    iterator = iter(batches)
    while True:
        with stop.deferred(wait=False):
            loaded = next(iterator, None)
        if loaded is None:
            return
        yield loaded
