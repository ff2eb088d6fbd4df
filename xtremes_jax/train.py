"""`python -m xtremes_jax.train`: one run, read from top to bottom: arguments, data, model, loop, scores, export."""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from xtremes_jax import console
from xtremes_jax.arguments import Arguments, describe, parse_arguments, steps_between
from xtremes_jax.assembly import (
    Network,
    Optimization,
    assemble,
    make_optimization,
    make_train_loader,
    model_config,
    run_length,
)
from xtremes_jax.corpus import SkippedClips, load_corpus
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.report import RunLog, write_json
from xtremes_jax.export import export_run, push_run
from xtremes_jax.loading import starting_point
from xtremes_jax.run_directory import RunDirectory
from xtremes_jax.scoring import Scorer, write_scores
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.devices import configure_jax
from xtremes_jax.training.loop import FitReport, Hooks, Schedule, fit
from xtremes_jax.training.signals import Interrupted, StopRequest
from xtremes_jax.training.state import TrainState
from xtremes_jax.training.step import make_train_step

logger = logging.getLogger(__name__)

PREDICTIONS = {"eval": "eval_predictions.jsonl", "predict": "predictions.jsonl"}
"""File of each scored split's hypotheses."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 0, 2 for unusable input, or 128 + signal number after a signal."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        console.set_up(arguments.training.log_level)
        run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        print(f"Stopped by {interruption}; the same command goes on from here.", file=sys.stderr)
        return interruption.status
    return 0


def run(arguments: Arguments) -> dict[str, Any]:
    """Trains, scores and exports as the arguments say, and returns what `all_results.json` holds."""
    data, training = arguments.data, arguments.training
    for note in arguments.notes:
        logger.warning(note)
    configure_jax(use_cpu=training.use_cpu, tf32=training.tf32, compilation_cache_dir=training.compilation_cache_dir)
    directory = RunDirectory(training.output_dir, overwrite=training.overwrite_output_dir, training=training.do_train)
    with directory, StopRequest() as stop:
        # Data: clips with lengths, labels and references; what cannot be used is listed in skipped.jsonl.
        skipped = SkippedClips(directory.path, data.max_skipped_fraction)
        start = starting_point(arguments.model, token=training.hub_token)
        corpus = load_corpus(arguments, start, skipped)
        stop.check()
        if data.preprocessing_only:
            logger.info("The data is prepared and cached; --preprocessing_only ends the run here.")
            return {}

        # Model: architecture, and parameters on the devices.
        config = model_config(arguments, start, corpus)
        network = assemble(arguments, start, config)
        scorers = {
            role: Scorer(arguments, network, corpus, role, skipped)
            for role in ("eval", "predict")
            if role in corpus.splits
        }
        stop.check()

        # Loop: train, score on the way, end with the last or the best parameters.
        results: dict[str, Any] = {}
        if training.do_train:
            loader = make_train_loader(arguments, corpus, network.mesh)
            state, results = train(arguments, network, loader, scorers.get("eval"), directory, skipped, stop)
            network = dataclasses.replace(network, trainable=state.trainable, frozen=state.frozen)
            results["train_samples"] = len(corpus.splits["train"])
            write_json(directory.path / "train_results.json", results)

        # Report: final scores, and a Transformers repository.
        for role, scorer in scorers.items():
            scored = scorer(network.trainable, network.frozen)
            results |= write_scores(directory.path, role, scored, PREDICTIONS[role])
            stop.check()
        write_json(directory.path / "all_results.json", results)
        if training.do_train:
            export_run(directory.path, network, arguments, corpus, results, start)
        console.show_results(results, arguments, corpus, directory.path)
        if training.push_to_hub:
            push_run(directory.path, arguments)
    return results


@dataclasses.dataclass
class Best:
    """The best evaluation so far."""

    score: float | None = None
    step: int | None = None

    def offer(self, step: int, score: float | None, greater_is_better: bool | None) -> None:
        """Takes a later score over if it is better; a tie stays with the earlier step."""
        if score is None:
            return
        if self.score is None or (score > self.score if greater_is_better else score < self.score):
            self.score, self.step = score, step


def train(
    arguments: Arguments,
    network: Network,
    loader: TrainLoader,
    scorer: Scorer | None,
    directory: RunDirectory,
    skipped: SkippedClips,
    stop: StopRequest,
) -> tuple[TrainState, dict[str, Any]]:
    """Runs the loop, from the newest checkpoint if there is one: (final or best state, train results).

    The network's own parameters are gone afterwards: they have become part of the state.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    training = arguments.training
    total_steps = run_length(arguments, loader.steps_per_epoch)
    optimization = make_optimization(arguments, network, total_steps)
    checkpoints = Checkpoints(
        directory.checkpoints, keep=training.save_total_limit, greater_is_better=bool(training.greater_is_better)
    )
    state, start_step, best = resume(arguments, checkpoints, optimization)
    log = RunLog(
        directory.path,
        tensorboard_dir=tensorboard_folder(arguments, directory) if training.report_to else None,
        resume_step=start_step,
    )
    step = compile_step(arguments, network, optimization)
    bar = console.Bar(total=total_steps, start=start_step, hidden=training.disable_tqdm)
    hooks = make_hooks(arguments, log, bar, scorer, checkpoints, skipped, best)
    batches = loader.iterate(start_step)
    try:
        with jax.set_mesh(network.mesh):
            state, report = fit(
                state,
                start_step=start_step,
                train_step=step,
                batches=batches,
                schedule=make_timetable(arguments, total_steps),
                hooks=hooks,
                stop=stop,
                epoch_of=lambda done: (done / loader.steps_per_epoch, done % loader.steps_per_epoch == 0),
            )
    finally:
        batches.close()
        bar.close()
        log.close()
        checkpoints.wait()
    if report.interrupted:
        checkpoints.close()
        stop.check()
    results = train_results(report, state, loader, step._cache_size(), best)
    if training.load_best_model_at_end and best.step not in (None, total_steps):
        logger.info("Going back to the best checkpoint: step %s, %s %.4f", best.step, *_best_of(training, best))
        state, _ = checkpoints.restore(best.step, optimization.abstract_state)
    checkpoints.close()
    return state, results


def _best_of(training, best: Best) -> tuple[str, float]:
    return training.metric_for_best_model, best.score


def compile_step(arguments: Arguments, network: Network, optimization: Optimization):
    """The training step of these arguments; XLA compiles it when the first batch of each shape comes."""
    training = arguments.training
    return make_train_step(
        graphdef=network.graphdef,
        objective=network.objective,
        optimizer=optimization.optimizer,
        schedule=optimization.learning_rate,
        max_grad_norm=training.max_grad_norm,
        accumulation=training.gradient_accumulation_steps,
        scale_loss=training.fp16,
        seed=training.seed,
        mesh=network.mesh,
        state_sharding=optimization.state_sharding,
    )


def resume(arguments: Arguments, checkpoints: Checkpoints, optimization: Optimization) -> tuple[TrainState, int, Best]:
    """The state to start from, its global step and the best score so far: of a checkpoint, or of the beginning."""
    wanted = arguments.training.resume_from_checkpoint
    source, step = checkpoints, checkpoints.latest()
    if wanted not in (None, "True", "true"):
        source, step = Checkpoints.at(wanted)
    elif wanted is not None and step is None:
        raise InputError(f"--resume_from_checkpoint: there is no checkpoint in {checkpoints.directory}.")
    if step is None:
        return optimization.state, 0, Best()
    state, progress = source.restore(step, optimization.abstract_state)
    logger.info("Going on from step %s (%s)", step, source.directory / str(step))
    _warn_of_another_order(arguments, progress)
    return state, step, Best(**progress["best"])


_ORDER = (
    "dataset_name dataset_config_name train_split_name max_train_samples max_duration_in_seconds "
    "min_duration_in_seconds max_batch_seconds max_buckets group_by_length dataloader_drop_last data_seed"
).split()
"""Flags that, with the rows of a global batch, decide which clips a step gets."""


def _warn_of_another_order(arguments: Arguments, progress: dict[str, Any]) -> None:
    """Says so when a run goes on with other batches than it began with: some clips then come twice, others not."""
    before, now = progress["arguments"], describe(arguments)

    def rows(values: dict[str, Any], devices: int) -> int:
        return values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * devices

    changed = [name for name in _ORDER if before.get(name) != now[name]]
    if rows(before, progress["devices"]) != rows(now, jax.device_count()):
        changed.append("the number of clips in a step over all devices")
    if changed:
        logger.warning(
            "The run began with other batches (%s): in this epoch, some clips will come twice and others not at all.",
            ", ".join(changed),
        )


def make_timetable(arguments: Arguments, total_steps: int) -> Schedule:
    """When to log, evaluate and save, from the strategies and their steps."""
    training = arguments.training

    def every(strategy: str, steps: float) -> int | str | None:
        return None if strategy == "no" else "epoch" if strategy == "epoch" else steps_between(steps, total_steps)

    return Schedule(
        total_steps=total_steps,
        logging_steps=every(training.logging_strategy, training.logging_steps),
        eval_steps=every(training.eval_strategy, training.eval_steps),
        save_steps=every(training.save_strategy, training.save_steps),
        log_first=training.logging_first_step,
    )


def tensorboard_folder(arguments: Arguments, directory: RunDirectory) -> Path:
    """`--logging_dir`, or `runs/` in the output directory; `--run_name` makes a folder of its own in it."""
    training = arguments.training
    folder = Path(training.logging_dir) if training.logging_dir else directory.tensorboard
    return folder / training.run_name if training.run_name else folder


def make_hooks(
    arguments: Arguments,
    log: RunLog,
    bar: console.Bar,
    scorer: Scorer | None,
    checkpoints: Checkpoints,
    skipped: SkippedClips,
    best: Best,
) -> Hooks:
    """What the loop does besides steps. `best` is kept up to date."""
    training, task = arguments.training, arguments.selection.task

    def evaluate(state: TrainState, step: int, epoch: float) -> float | None:
        scored = scorer(state.trainable, state.frozen)
        log.write("eval", step, epoch, {f"eval_{name}": value for name, value in scored.metrics.items()})
        console.show_evaluation(step, epoch, scored, task)
        score = scored.metrics.get(training.metric_for_best_model)
        best.offer(step, score, training.greater_is_better)
        return score

    def save(state: TrainState, step: int, score: float | None) -> None:
        progress = {"best": dataclasses.asdict(best), "arguments": describe(arguments), "devices": jax.device_count()}
        checkpoints.save(step, state, progress, score)

    def write_log(step: int, epoch: float, values: dict[str, Any]) -> None:
        log.write("train", step, epoch, values)
        bar.show(step, epoch, values)

    return Hooks(log=write_log, evaluate=evaluate, save=save, skipped=skipped.add, advance=bar.advance)


def train_results(
    report: FitReport, state: TrainState, loader: TrainLoader, compilations: int, best: Best
) -> dict[str, Any]:
    """What `train_results.json` holds: Transformers' names where it has one, and what the loop measured."""
    results: dict[str, Any] = {
        "epoch": int(state.step) / loader.steps_per_epoch,
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
        "train_compilations": compilations,
        "train_buckets": len(loader.edges),
        "train_skipped_updates": int(state.skipped_updates),
    }
    return results | ({"best_step": best.step, "best_score": best.score} if best.step is not None else {})


if __name__ == "__main__":
    sys.exit(main())
