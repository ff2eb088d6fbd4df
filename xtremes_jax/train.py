"""`python -m xtremes_jax.train`: one run, read from top to bottom: arguments, data, model, loop, scores, export."""

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from xtremes_jax import command, console
from xtremes_jax.architecture import model_config
from xtremes_jax.arguments import Arguments, parse_arguments
from xtremes_jax.assembly import Network, assemble
from xtremes_jax.corpus import Corpus, SkippedClips, load_corpus
from xtremes_jax.course import Course, go_back_to_best, make_course
from xtremes_jax.data.cache import default_cache_dir
from xtremes_jax.evaluation.predict import ScoredSplit
from xtremes_jax.evaluation.report import RunLog, write_json
from xtremes_jax.export import export_run, write_card
from xtremes_jax.frontend_cache import check_process_count, open_frontend_cache, shapes_on_frames
from xtremes_jax.looping import Publish, Surroundings, make_hooks, make_timetable, tensorboard_folder
from xtremes_jax.optimization import Optimization, make_step
from xtremes_jax.publishing import publish_checkpoint, uploading
from xtremes_jax.resuming import resume
from xtremes_jax.run_directory import RunDirectory
from xtremes_jax.run_record import write_record
from xtremes_jax.scoring import Scorer, make_scorer, results_of, write_scores
from xtremes_jax.starting import StartingPoint, starting_point
from xtremes_jax.startup import StartUp, process_begun
from xtremes_jax.together import Together, check_same_run
from xtremes_jax.training.ahead import CompiledAhead
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.devices import configure_jax
from xtremes_jax.training.loop import fit
from xtremes_jax.training.meter import FitReport
from xtremes_jax.training.processes import first_goes_ahead, from_first, is_first, several
from xtremes_jax.training.signals import StopRequest
from xtremes_jax.training.state import TrainState, parameter_count
from xtremes_jax.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

PREDICTIONS = {"eval": "eval_predictions.jsonl", "predict": "predictions.jsonl"}
"""File of each scored split's hypotheses."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: see `command.run_command`."""
    startup = StartUp(process_begun() if argv is None else None)
    run_it = functools.partial(run, startup=startup)
    return command.run_command(parse_arguments, run_it, sys.argv[1:] if argv is None else argv)


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
    check_process_count(arguments, jax.process_count())
    directory = RunDirectory(
        training.output_dir, overwrite=training.overwrite_output_dir, training=training.do_train,
        checkpoints=training.checkpoint_dir,
    )  # fmt: skip
    watchdog = Watchdog(training.stall_timeout, "preparing data")
    publishing = uploading(arguments, directory.path, watchdog.beat)
    with StopRequest(shared=several()) as stop, directory, watchdog, publishing as uploads:
        skipped = SkippedClips(directory.path, data.max_skipped_fraction)
        together = Together(stop, skipped, watchdog.beat)
        around = Surroundings(directory, skipped, stop, together, startup, watchdog, uploads)
        start, corpus = read_data(arguments, around)
        if data.preprocessing_only:
            logger.info("The data is prepared and cached; --preprocessing_only ends the run here.")
            return {}
        network, scorers = make_model(arguments, start, corpus, around)
        results = read_results(directory.path)
        if training.do_train:
            directory.begin()
            network, trained = train_and_export(arguments, start, corpus, network, scorers, around)
            results = ({} if training.overwrite_output_dir else results) | trained
        results |= score_and_publish(arguments, start, corpus, network, scorers, results, around)
        stop.check()
    return results


def read_data(arguments: Arguments, around: Surroundings) -> tuple[StartingPoint, Corpus]:
    """What the model starts from, and clips with lengths, labels and references; what cannot be used is listed."""
    translation = arguments.selection.task.kind == "translation"
    training = arguments.training
    start = starting_point(arguments.model, translation=translation, token=training.hub_token, trains=training.do_train)
    with first_goes_ahead():
        corpus = load_corpus(arguments, start, around.skipped, around.watchdog.beat)
    check_same_run(arguments, corpus)
    around.startup.mark("data")
    return start, corpus


def make_model(
    arguments: Arguments, start: StartingPoint, corpus: Corpus, around: Surroundings
) -> tuple[Network, dict[str, Scorer]]:
    """The architecture, with parameters on the devices, and what scores it."""
    around.enter("making the model")
    network = assemble(arguments, start, corpus, model_config(arguments, start, corpus))
    scorers = {
        role: make_scorer(arguments, network, corpus, role, around.skipped, around.together)
        for role in ("eval", "predict")
        if role in corpus.splits
    }
    around.startup.mark("model")
    return network, scorers


def train_and_export(
    arguments: Arguments,
    start: StartingPoint,
    corpus: Corpus,
    network: Network,
    scorers: dict[str, Scorer],
    around: Surroundings,
) -> tuple[Network, dict[str, Any]]:
    """The network with its last or best parameters, kept as a Transformers directory; and the train results."""
    state, trained = train(arguments, start, network, corpus, scorers, around)
    network = dataclasses.replace(network, trainable=state.trainable, frozen=state.frozen)
    from_first(lambda: write_json(around.directory.path / "train_results.json", trained))
    around.enter("exporting the model")
    export_run(around.directory.path, network, arguments, corpus, start)
    return network, trained


def score_and_publish(
    arguments: Arguments,
    start: StartingPoint,
    corpus: Corpus,
    network: Network,
    scorers: dict[str, Scorer],
    results: dict[str, Any],
    around: Surroundings,
) -> dict[str, Any]:
    """Scores the finished model and adds that to the results so far, which are written, shown and uploaded."""
    scored = {}
    for role, scorer in scorers.items():
        around.enter(f"scoring ({role})")
        scored[role] = scorer(network.trainable, network.frozen)
        results = results | results_of(role, scored[role])
        from_first(functools.partial(write_scores, around.directory.path, role, scored[role], PREDICTIONS[role]))
    around.enter("writing the results")
    from_first(lambda: publish(arguments, corpus, start, scored, results, around))
    return results


def publish(
    arguments: Arguments,
    corpus: Corpus,
    start: StartingPoint,
    scored: dict[str, ScoredSplit],
    results: dict[str, Any],
    around: Surroundings,
) -> None:
    """Writes and shows what a run that has ended has come to, and uploads it if asked to."""
    folder = around.directory.path
    write_json(folder / "all_results.json", results)
    write_record(folder, arguments, corpus, scored)
    if arguments.training.do_train:
        write_card(folder, arguments, corpus, results, start)
    console.show_results(results, arguments, corpus, folder)
    if around.uploads is not None:
        around.enter("uploading")
        around.uploads.finish(f"Fine-tuned on {arguments.data.dataset_config_name} with xtremes_jax")


def train(
    arguments: Arguments,
    start: StartingPoint,
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
        state, report = run_loop(arguments, start, network, corpus, course, step, scorers, around)
        around.watchdog.enter("finishing the checkpoints")
        if around.stop.received is not None:  # it may have come after the last step
            course.checkpoints.close()
            around.stop.check()
    results = train_results(report, state, course, step) | around.startup.results()
    results["train_samples"] = len(corpus.splits["train"])
    if not report.steps:
        logger.info("The run is finished: all its %d steps are done.", course.total_steps)
        results |= read_results(around.directory.path, "train_results.json")
    if arguments.training.load_best_model_at_end:
        state = go_back_to_best(arguments.training.metric_for_best_model, course, state)
    results["model_step"] = int(state.step)
    course.checkpoints.close()
    return state, results


def run_loop(
    arguments: Arguments,
    start: StartingPoint,
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
        state, note = resume(arguments, corpus, course, network, around.skipped)
        if "eval" not in scorers:
            note = dataclasses.replace(note, evaluation_owed=False)
        cache = open_frontend_cache(arguments, corpus.splits["train"], network, state, shapes) if cached else None
        if cache is not None:
            resources.callback(cache.close)
        for scorer in scorers.values():
            scorer.compile_ahead(step)  # after those, as these are needed later
        resources.callback(finish_writing, checkpoints, around.stop)
        log = RunLog(
            around.directory.path,
            tensorboard_dir=tensorboard_folder(arguments, around.directory) if arguments.training.report_to else None,
            resume_step=begin,
            writes=is_first(),
            evaluation_owed=note.evaluation_owed,
        )
        resources.callback(log.close)
        bar = console.Bar(total=total_steps, start=begin, hidden=arguments.training.disable_tqdm, silent=not is_first())
        resources.callback(bar.close)
        batches = course.loader.iterate(begin) if cache is None else cache.batches(course.loader, begin)
        resources.callback(batches.close)
        hooks = make_hooks(
            arguments, corpus, course, log, bar, scorers.get("eval"), around,
            started=lambda report: around.startup.first_step(report, step),
            publish=make_publish(arguments, start, corpus, network, course, around),
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
                note=note,
            )


def make_publish(
    arguments: Arguments, start: StartingPoint, corpus: Corpus, network: Network, course: Course, around: Surroundings
) -> Publish | None:
    """What uploads the model of each checkpoint, if that is wanted."""
    if not arguments.training.push_to_hub or arguments.training.hub_strategy == "end":
        return None
    folder = around.directory.path
    return functools.partial(publish_checkpoint, arguments, start, corpus, network, course, folder, around.uploads)


def finish_writing(checkpoints: Checkpoints, stop: StopRequest) -> None:
    """Waits until the last checkpoint is on the disk. A signal that comes meanwhile would leave it half-written."""
    with stop.deferred():
        checkpoints.wait()


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
        "train_parameters": parameter_count(state.trainable),
        "train_optimizer_bytes": course.optimization.optimizer_bytes,
    }
    return results | ({"best_step": best.step, "best_score": best.score} if best.step is not None else {})


if __name__ == "__main__":
    command.run_program(main)
