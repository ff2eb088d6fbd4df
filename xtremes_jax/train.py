"""`python -m xtremes_jax.train`: one run, read from top to bottom: arguments, data, model, loop, scores, export."""

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from xtremes_jax import console
from xtremes_jax.arguments import Arguments, describe, parse_arguments, steps_between
from xtremes_jax.assembly import Network, assemble, model_config
from xtremes_jax.corpus import Corpus, SkippedClips, load_corpus
from xtremes_jax.course import BatchSplit, Course, go_back_to_best, make_course
from xtremes_jax.data.cache import default_cache_dir
from xtremes_jax.evaluation.report import RunLog, write_json
from xtremes_jax.export import export_run, push_run, write_card
from xtremes_jax.frontend_cache import check_process_count, open_frontend_cache, shapes_on_frames
from xtremes_jax.optimization import Optimization, make_step
from xtremes_jax.resuming import labels_of, resume
from xtremes_jax.run_directory import RECORD, RunDirectory
from xtremes_jax.run_record import write_record
from xtremes_jax.scoring import Scorer, make_scorer, write_scores
from xtremes_jax.starting import starting_point
from xtremes_jax.startup import StartUp, process_begun
from xtremes_jax.training.ahead import CompiledAhead
from xtremes_jax.training.devices import configure_jax
from xtremes_jax.training.loop import FitReport, Hooks, Note, Schedule, fit
from xtremes_jax.training.signals import StopRequest
from xtremes_jax.training.state import TrainState
from xtremes_jax.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

PREDICTIONS = {"eval": "eval_predictions.jsonl", "predict": "predictions.jsonl"}
"""File of each scored split's hypotheses."""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What the parts of one run share besides its arguments, network and corpus."""

    directory: RunDirectory
    skipped: SkippedClips
    stop: StopRequest
    startup: StartUp
    watchdog: Watchdog


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: see `console.run_command`."""
    startup = StartUp(process_begun() if argv is None else None)
    run_it = functools.partial(run, startup=startup)
    return console.run_command(parse_arguments, run_it, sys.argv[1:] if argv is None else argv)


def run(arguments: Arguments, startup: StartUp | None = None) -> dict[str, Any]:
    """Trains, scores and exports as the arguments say, and returns what `all_results.json` holds."""
    startup = startup or StartUp()
    startup.mark("imports")
    data, training = arguments.data, arguments.training
    for note in arguments.notes:
        logger.warning(note)
    configure_jax(
        use_cpu=training.use_cpu, tf32=training.tf32, compilation_cache_dir=training.compilation_cache_dir,
        default_cache_root=default_cache_dir(),
    )  # fmt: skip
    check_process_count(arguments)
    directory = RunDirectory(training.output_dir, overwrite=training.overwrite_output_dir, training=training.do_train)
    with directory, StopRequest() as stop, Watchdog(training.stall_timeout, "preparing data") as watchdog:
        # Data: clips with lengths, labels and references; what cannot be used is listed in skipped.jsonl.
        skipped = SkippedClips(directory.path, data.max_skipped_fraction)
        translation = arguments.selection.task.kind == "translation"
        start = starting_point(arguments.model, translation=translation, token=training.hub_token)
        corpus = load_corpus(arguments, start, skipped)
        startup.mark("data")
        if data.preprocessing_only:
            logger.info("The data is prepared and cached; --preprocessing_only ends the run here.")
            return {}

        # Model: architecture, and parameters on the devices.
        stop.check()
        watchdog.enter("making the model")
        config = model_config(arguments, start, corpus)
        network = assemble(arguments, start, corpus, config)
        scorers = {
            role: make_scorer(arguments, network, corpus, role, skipped)
            for role in ("eval", "predict")
            if role in corpus.splits
        }
        startup.mark("model")
        stop.check()

        # Loop: train, score on the way, end with the last or the best parameters, and keep those first of all.
        results = read_results(directory.path)
        if training.do_train:
            if training.overwrite_output_dir:
                directory.clear()
                results = {}
            # A record is of a finished run: see score.py.
            (directory.path / RECORD).unlink(missing_ok=True)
            surroundings = Surroundings(directory, skipped, stop, startup, watchdog)
            state, trained = train(arguments, network, corpus, scorers, surroundings)
            network = dataclasses.replace(network, trainable=state.trainable, frozen=state.frozen)
            results |= trained
            write_json(directory.path / "train_results.json", trained)
            watchdog.enter("exporting the model")
            export_run(directory.path, network, arguments, corpus, start)

        # Scores of the finished model, its card, and its way to the hub.
        scored = {}
        for role, scorer in scorers.items():
            watchdog.enter(f"scoring ({role})")
            scored[role] = scorer(network.trainable, network.frozen)
            results |= write_scores(directory.path, role, scored[role], PREDICTIONS[role])
        write_json(directory.path / "all_results.json", results)
        write_record(directory.path, arguments, corpus, scored)
        if training.do_train:
            write_card(directory.path, arguments, corpus, results, start)
        console.show_results(results, arguments, corpus, directory.path)
        if training.push_to_hub:
            watchdog.enter("uploading")
            push_run(directory.path, arguments)
    return results


def train(
    arguments: Arguments,
    network: Network,
    corpus: Corpus,
    scorers: dict[str, Scorer],
    around: Surroundings,
) -> tuple[TrainState, dict[str, Any]]:
    """Runs the loop, from the newest checkpoint if there is one: (final or best state, train results).

    The network's own parameters are gone afterwards: they have become part of the state, or a checkpoint's have taken
    their place.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    around.watchdog.enter("reading the checkpoint, if there is one")
    course = make_course(arguments, network, corpus, around.directory)
    arguments = course.arguments
    with step_ahead(arguments, network, course.optimization, around) as step:
        state, report = run_loop(arguments, network, corpus, course, step, scorers, around)
        around.watchdog.enter("finishing the checkpoints")
        if report.interrupted:
            course.checkpoints.close()
            around.stop.check()
    results = train_results(report, state, course, step) | around.startup.results()
    results["train_samples"] = len(corpus.splits["train"])
    if not report.steps:
        logger.info("The run is finished: all its %d steps are done.", course.total_steps)
        results |= read_results(around.directory.path, "train_results.json")
    if arguments.training.load_best_model_at_end:
        state = go_back_to_best(arguments.training.metric_for_best_model, course, state)
    course.checkpoints.close()
    return state, results


def run_loop(
    arguments: Arguments,
    network: Network,
    corpus: Corpus,
    course: Course,
    step: CompiledAhead,
    scorers: dict[str, Scorer],
    around: Surroundings,
) -> tuple[TrainState, FitReport]:
    """Makes or restores the state and runs the loop on it; programs are compiled meanwhile."""
    begin, total_steps, checkpoints = course.begin, course.total_steps, course.checkpoints
    cached = arguments.model.cache_frontend and begin < total_steps
    with ExitStack() as resources:
        # Compiled while the state is read or made and the loader warms up.
        shapes = course.loader.shapes(begin, total_steps - begin)
        step.announce(shapes_on_frames(shapes, network.config) if cached else shapes)
        state, note = resume(arguments, corpus, course, network)
        cache = open_frontend_cache(arguments, corpus.splits["train"], network, state, shapes) if cached else None
        if cache is not None:
            resources.callback(cache.close)
        for scorer in scorers.values():
            scorer.compile_ahead(step)  # after those, as these are needed later
        resources.callback(checkpoints.wait)
        log = RunLog(
            around.directory.path,
            tensorboard_dir=tensorboard_folder(arguments, around.directory) if arguments.training.report_to else None,
            resume_step=begin,
        )
        resources.callback(log.close)
        bar = console.Bar(total=total_steps, start=begin, hidden=arguments.training.disable_tqdm)
        resources.callback(bar.close)
        batches = course.loader.iterate(begin) if cache is None else cache.batches(course.loader, begin)
        resources.callback(batches.close)
        hooks = make_hooks(
            arguments, corpus, course, log, bar, scorers.get("eval"), around,
            started=lambda report: around.startup.first_step(report, step),
        )  # fmt: skip
        around.startup.mark("state")
        around.watchdog.enter("training")
        with jax.set_mesh(network.mesh), around.stop.deferred():
            return fit(
                state,
                start_step=begin,
                train_step=step if cache is None else cache.wrap(step),
                batches=batches,
                schedule=make_timetable(arguments, total_steps),
                hooks=hooks,
                stop=around.stop,
                epoch_of=course.epoch_of,
                note=note if "eval" in scorers else dataclasses.replace(note, evaluation_owed=False),
            )


def read_results(directory: Path, name: str = "all_results.json") -> dict[str, Any]:
    """What an earlier run in this directory has written, or nothing."""
    path = directory / name
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def step_ahead(
    arguments: Arguments, network: Network, optimization: Optimization, around: Surroundings
) -> CompiledAhead:
    """The training step of these arguments, compiled ahead."""

    @contextmanager
    def waiting() -> Iterator[None]:
        left = around.watchdog.enter("compiling")
        with around.stop.deferred(wait=False):
            yield
        around.watchdog.enter(left)

    step = make_step(arguments, network, optimization)
    return CompiledAhead(step, mesh=network.mesh, leading=(optimization.abstract_state,), waiting=waiting)


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
) -> Hooks:
    """What the loop does besides steps. The course's `best` is kept up to date."""
    training, task = arguments.training, arguments.selection.task

    def evaluate(state: TrainState, step: int, epoch: float) -> float | None:
        left = around.watchdog.enter("evaluating")
        scored = scorer(state.trainable, state.frozen)
        around.watchdog.enter(left)
        with around.stop.deferred():  # once it is written, the evaluation is no longer owed
            log.write("eval", step, epoch, {f"eval_{name}": value for name, value in scored.metrics.items()})
            console.show_evaluation(step, epoch, scored, task)
        return scored.metrics.get(training.metric_for_best_model)

    def save(state: TrainState, step: int, score: float | None, note: Note) -> None:
        # Only what is saved can be gone back to, so only that can be best.
        course.best.offer(step, score, training.greater_is_better)
        progress = {
            "best": dataclasses.asdict(course.best),
            "arguments": describe(arguments),
            "labels": labels_of(corpus),
            "devices": jax.device_count(),
            "split": BatchSplit.of(arguments)._asdict(),
            "asked": course.asked._asdict(),
            "loop": dataclasses.asdict(note),
        }
        log.sync()
        left = around.watchdog.enter("handing a checkpoint over")
        course.checkpoints.save(step, state, progress)
        around.watchdog.enter(left)

    def write_log(step: int, epoch: float, values: dict[str, Any]) -> None:
        log.write("train", step, epoch, values)
        bar.show(step, epoch, values)

    def advance() -> None:
        bar.advance()
        around.watchdog.beat()

    return Hooks(
        log=write_log, evaluate=evaluate, save=save, consumed=log.write_batch, nonfinite=log.write_nonfinite,
        skipped=around.skipped.add, advance=advance, started=started,
    )  # fmt: skip


def train_results(report: FitReport, state: TrainState, course: Course, step: CompiledAhead) -> dict[str, Any]:
    """What `train_results.json` holds: Transformers' names where it has one, and what the loop measured."""
    best = course.best
    results: dict[str, Any] = {
        "epoch": course.epoch_of(int(state.step))[0],
        "train_loss": report.loss_sum / report.logged_steps if report.logged_steps else None,
        "train_runtime": report.runtime,
        "train_compile_seconds": report.compile_seconds,
        "train_first_step_seconds": report.first_step_seconds,
        "train_steps": report.steps,
        # Speeds are those of training proper, without compiling, evaluating and saving.
        "train_steps_per_second": report.steps / report.steady_seconds,
        "train_samples_per_second": report.clips / report.steady_seconds,
        "train_audio_seconds_per_second": report.audio_seconds / report.steady_seconds,
        "train_padding": 1.0 - report.audio_seconds / report.padded_seconds if report.padded_seconds else None,
        "train_data_wait": report.wait_seconds / report.steady_seconds,
        "train_compilations": len(step.programs),
        "train_compilations_cached": step.cached,
        "train_buckets": len(course.loader.edges),
        "train_skipped_updates": int(state.skipped_updates),
    }
    return results | ({"best_step": best.step, "best_score": best.score} if best.step is not None else {})


if __name__ == "__main__":
    console.leave(main())
