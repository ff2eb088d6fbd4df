"""The training loop: batches in, steps, logging, evaluation and checkpoints at their times."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.training.signals import StopRequest
from xtremes_jax.training.state import TrainState
from xtremes_jax.training.step import StepMetrics


@dataclass(frozen=True)
class Schedule:
    """When a run logs, evaluates and saves, in global steps. None is never; "epoch" is at the end of each epoch."""

    total_steps: int
    logging_steps: int | None
    eval_steps: int | str | None
    save_steps: int | str | None
    log_first: bool = False
    max_nonfinite_steps: int = 100

    def due(self, every: int | str | None, step: int, epoch_ended: bool) -> bool:
        """Whether something done every `every` steps is due after `step` steps."""
        if every is None:
            return False
        return epoch_ended if every == "epoch" else step % every == 0


@dataclass
class Meter:
    """What has happened since the last log line."""

    metrics: list[StepMetrics] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, metrics: StepMetrics, loaded) -> None:
        """Counts a step; its scalars stay on the devices."""
        self.metrics.append(metrics)
        self.audio_seconds += loaded.audio_seconds
        self.padded_seconds += loaded.padded_seconds
        self.wait_seconds += loaded.data_wait_s

    def summary(self) -> dict[str, float]:
        """The log line of these steps; waits for the last of them to finish."""
        fetched: list[StepMetrics] = jax.device_get(self.metrics)
        elapsed = time.perf_counter() - self.started
        finite = [m for m in fetched if m.finite]
        return {
            # A step that was left out (float16 does that now and then) must not make the mean of the others NaN.
            "loss": float(np.mean([m.loss for m in finite])) if finite else math.nan,
            "learning_rate": float(fetched[-1].learning_rate),
            "grad_norm": float(np.mean([m.gradient_norm for m in finite])) if finite else math.nan,
            "skipped_updates": len(fetched) - len(finite),
            "audio_seconds_per_second": self.audio_seconds / elapsed,
            "seconds_per_step": elapsed / len(fetched),
            "padding": 1.0 - self.audio_seconds / self.padded_seconds if self.padded_seconds else 0.0,
            "data_wait": self.wait_seconds / elapsed,
        }


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; plain functions of the entry point.

    `log(step, epoch, values)`, `evaluate(state, step, epoch) -> score or None`, `save(state, step, score)`,
    `skipped(clips)` for clips that could not be decoded, `advance()` after each step, for the progress bar.
    """

    log: Callable[[int, float, dict[str, Any]], None]
    evaluate: Callable[[TrainState, int, float], float | None]
    save: Callable[[TrainState, int, float | None], None]
    skipped: Callable[[list], None]
    advance: Callable[[], None]


@dataclass
class FitReport:
    """What a finished (or interrupted) loop has measured. Times are wall-clock seconds."""

    steps: int = 0
    clips: int = 0
    audio_seconds: float = 0.0
    padded_seconds: float = 0.0
    wait_seconds: float = 0.0
    loss_sum: float = 0.0
    logged_steps: int = 0
    runtime: float = 0.0
    compile_seconds: float = 0.0
    """Spent on steps of a shape that had not come before: tracing and compiling them."""
    pause_seconds: float = 0.0
    """Spent on evaluation and on handing checkpoints over."""
    first_step_seconds: float | None = None
    """From the beginning to the end of the first step, which waits for the first batch and compiles."""
    interrupted: bool = False

    @property
    def steady_seconds(self) -> float:
        """Seconds of training proper: neither compiling nor pausing."""
        return max(self.runtime - self.compile_seconds - self.pause_seconds, 1e-9)


def fit(
    state: TrainState,
    *,
    start_step: int,
    train_step: Callable,
    batches: Iterable,
    schedule: Schedule,
    hooks: Hooks,
    stop: StopRequest,
    epoch_of: Callable[[int], tuple[float, bool]],
) -> tuple[TrainState, FitReport]:
    """Runs steps `start_step` to `schedule.total_steps`, or until a stop is asked for, and saves in either case.

    Nothing is read back from the devices between log lines, so that the next step is always queued.

    Args:
        batches: loaded batches of the global steps from `start_step` on.
        epoch_of: steps done -> (epochs done, whether an epoch ended just there).
    """
    report, meter, begun = FitReport(), Meter(), time.perf_counter()
    step, saved, score, shapes = start_step, start_step, None, set()
    for loaded in batches:
        hooks.skipped(loaded.skipped)
        called = time.perf_counter()
        state, metrics = train_step(state, loaded.batch)
        if loaded.batch.audio.shape not in shapes:
            # A call returns before its step is done, unless the step has to be compiled.
            shapes.add(loaded.batch.audio.shape)
            report.compile_seconds += time.perf_counter() - called
            meter.started += time.perf_counter() - called
        meter.add(metrics, loaded)
        _count(report, loaded)
        step += 1
        if report.first_step_seconds is None:
            jax.block_until_ready(metrics)
            report.first_step_seconds = time.perf_counter() - begun
        epoch, epoch_ended = epoch_of(step)
        finished = step >= schedule.total_steps
        if schedule.due(schedule.logging_steps, step, epoch_ended) or (schedule.log_first and step == 1):
            meter = _log(meter, report, step, epoch, schedule, hooks)
        hooks.advance()
        score, paused = None, time.perf_counter()
        if schedule.due(schedule.eval_steps, step, epoch_ended) and stop.received is None:
            score = hooks.evaluate(state, step, epoch)
        if schedule.due(schedule.save_steps, step, epoch_ended):
            hooks.save(state, step, score)
            saved = step
        meter.started += time.perf_counter() - paused
        report.pause_seconds += time.perf_counter() - paused
        if finished or stop.received is not None:
            break
    if meter.metrics:
        _log(meter, report, step, epoch_of(step)[0], schedule, hooks)
    report.interrupted = stop.received is not None and step < schedule.total_steps
    if saved != step and (schedule.save_steps is not None or report.interrupted):
        hooks.save(state, step, score)
    report.runtime = time.perf_counter() - begun
    return state, report


def _count(report: FitReport, loaded) -> None:
    report.steps += 1
    report.clips += loaded.clips
    report.audio_seconds += loaded.audio_seconds
    report.padded_seconds += loaded.padded_seconds
    report.wait_seconds += loaded.data_wait_s


def _log(meter: Meter, report: FitReport, step: int, epoch: float, schedule: Schedule, hooks: Hooks) -> Meter:
    """Writes a log line and begins a new meter; also stops a run that no longer has finite gradients."""
    values = meter.summary()
    counted = len(meter.metrics) - values["skipped_updates"]
    if counted:
        report.loss_sum += values["loss"] * counted
        report.logged_steps += counted
    streak = int(meter.metrics[-1].nonfinite_streak)
    hooks.log(step, epoch, values)
    if streak >= schedule.max_nonfinite_steps:
        raise InputError(
            f"The gradients of the last {streak} steps were not finite, so none of them changed the model; the run "
            f"stops at step {step}. Lower --learning_rate, raise --warmup_steps, or compute in float32 or --bf16."
        )
    return Meter()
