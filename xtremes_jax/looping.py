"""What the training loop is told and what it calls: when to log, evaluate and save, and how."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from xtremes_jax import console
from xtremes_jax.arguments import Arguments, describe, steps_between
from xtremes_jax.corpus import Corpus, SkippedClips
from xtremes_jax.course import BatchSplit, Course
from xtremes_jax.evaluation.report import RunLog
from xtremes_jax.publishing import Uploads
from xtremes_jax.resuming import labels_of
from xtremes_jax.run_directory import RunDirectory
from xtremes_jax.scoring import Scorer, results_of
from xtremes_jax.startup import StartUp
from xtremes_jax.together import Together
from xtremes_jax.training.loop import Hooks, Schedule
from xtremes_jax.training.meter import FitReport, Note
from xtremes_jax.training.processes import from_first
from xtremes_jax.training.signals import StopRequest
from xtremes_jax.training.state import TrainState
from xtremes_jax.training.watchdog import Watchdog

Publish = Callable[[TrainState, int, dict[str, Any]], None]
"""Takes the state of a checkpoint, its step, and the scores there by the names that `all_results.json` has for them."""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What the parts of one run share besides its arguments, network and corpus."""

    directory: RunDirectory
    skipped: SkippedClips
    stop: StopRequest
    together: Together
    startup: StartUp
    watchdog: Watchdog
    uploads: Uploads | None = None
    """To the hub, in the process that makes them."""

    def enter(self, phase: str) -> None:
        """Enters a phase of the run, unless a signal has come.

        Raises:
            Interrupted: one has.
        """
        self.stop.check()
        self.watchdog.enter(phase)


def make_timetable(arguments: Arguments, total_steps: int) -> Schedule:
    """When to log, evaluate and save, from the strategies and their steps."""
    training = arguments.training

    def every(strategy: str, steps: float) -> int | str | None:
        return None if strategy == "no" else "epoch" if strategy == "epoch" else steps_between(steps, total_steps)

    eval_steps = every(training.eval_strategy, training.eval_steps)
    save_steps = every(training.save_strategy, training.save_steps)
    if training.load_best_model_at_end and isinstance(save_steps, int) and isinstance(eval_steps, int):
        # Shares of the run are rounded, each for itself; what is saved has to be scored.
        save_steps = max(eval_steps, save_steps // eval_steps * eval_steps)
    return Schedule(
        total_steps=total_steps,
        logging_steps=every(training.logging_strategy, training.logging_steps),
        eval_steps=eval_steps,
        save_steps=save_steps,
        log_first=training.logging_first_step,
        max_nonfinite_steps=training.max_nonfinite_steps,
        save_seconds=training.save_seconds,
    )


def tensorboard_folder(arguments: Arguments, directory: RunDirectory) -> Path:
    """`--logging_dir`, or `runs/` in the output directory; `--run_name` makes a folder of its own in it."""
    training = arguments.training
    folder = Path(training.logging_dir) if training.logging_dir else directory.tensorboard
    return folder / training.run_name if training.run_name else folder


def make_hooks(
    arguments: Arguments,
    corpus: Corpus,
    course: Course,
    log: RunLog,
    bar: console.Bar,
    scorer: Scorer | None,
    around: Surroundings,
    started: Callable[[FitReport], None],
    publish: Publish | None = None,
) -> Hooks:
    """What the loop does besides steps. The course's `best` is kept up to date.

    `publish` is called with each checkpoint, after it: with the scores of its step, if there was an evaluation.
    """
    training, task = arguments.training, arguments.selection.task
    latest: dict[int, dict[str, Any]] = {}

    def evaluate(state: TrainState, step: int, epoch: float) -> float | None:
        left = around.watchdog.enter("evaluating")
        scored = scorer(state.trainable, state.frozen)
        around.watchdog.enter(left)
        with around.stop.deferred():  # once it is written, the evaluation is no longer owed
            log.write("eval", step, epoch, results_of("eval", scored))
            console.show_evaluation(step, epoch, scored, task)  # at a level that only the first process shows
        latest.clear()
        latest[step] = results_of("eval", scored)
        return scored.metrics.get(training.metric_for_best_model)

    def save(state: TrainState, step: int, score: float | None, note: Note) -> None:
        # Only what is saved can be gone back to, so only that can be best.
        course.best.offer(step, score, training.greater_is_better)
        progress = {
            "best": dataclasses.asdict(course.best),
            "arguments": describe(arguments),
            "labels": labels_of(corpus),
            "devices": jax.device_count(),
            "origin": course.origin,
            "split": BatchSplit.of(arguments)._asdict(),
            "asked": course.asked._asdict(),
            "loop": dataclasses.asdict(note),
            "skipped": around.skipped.found(),
        }
        log.sync()
        left = around.watchdog.enter("handing a checkpoint over")
        course.checkpoints.save(step, state, progress)
        if publish is not None and around.stop.received is None:  # who is asked to stop has no time for that
            publish(state, step, latest.get(step, {}))
        around.watchdog.enter(left)

    def write_log(step: int, epoch: float, values: dict[str, Any]) -> None:
        log.write("train", step, epoch, values)
        bar.show(step, epoch, values)

    def advance() -> None:
        bar.advance()
        course.checkpoints.check()

    def write_nonfinite(step: int, count: int) -> Path:
        # All end the run after this: none before the first has written it down.
        return Path(from_first(lambda: str(log.write_nonfinite(step, count))))

    return Hooks(
        log=write_log, evaluate=evaluate, save=save, consumed=log.write_batch, nonfinite=write_nonfinite,
        agree=around.together.at_step, advance=advance, started=started,
    )  # fmt: skip
