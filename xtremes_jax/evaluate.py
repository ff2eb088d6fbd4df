"""`python -m xtremes_jax.evaluate`: scores a run's directory, or any fine-tuned Transformers checkpoint, on a split."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtremes_jax import command, console
from xtremes_jax.architecture import model_config
from xtremes_jax.arguments import Arguments, parse_evaluate_arguments
from xtremes_jax.assembly import assemble
from xtremes_jax.corpus import Corpus, SkippedClips, load_corpus
from xtremes_jax.data.cache import default_cache_dir
from xtremes_jax.evaluation.predict import ScoredSplit
from xtremes_jax.evaluation.report import write_json
from xtremes_jax.run_directory import RunDirectory
from xtremes_jax.run_record import write_record
from xtremes_jax.scoring import make_scorer, results_of, write_scores
from xtremes_jax.starting import starting_point
from xtremes_jax.together import Together, check_same_run
from xtremes_jax.training.devices import configure_jax
from xtremes_jax.training.processes import first_goes_ahead, from_first, several
from xtremes_jax.training.signals import StopRequest
from xtremes_jax.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status: see `command.run_command`."""
    return command.run_command(parse_evaluate_arguments, run, sys.argv[1:] if argv is None else argv)


def run(arguments: Arguments) -> dict[str, Any]:
    """Scores the prediction split and returns what `results.json` holds."""
    training = arguments.training
    for note in arguments.notes:
        logger.warning(note)
    configure_jax(
        use_cpu=training.use_cpu, tf32=training.tf32, compilation_cache_dir=training.compilation_cache_dir,
        default_cache_root=default_cache_dir(),
    )  # fmt: skip
    directory = RunDirectory(training.output_dir, overwrite=False, training=False)
    watchdog = Watchdog(training.stall_timeout, "preparing data")
    with StopRequest(shared=several()) as stop, directory, watchdog:
        skipped = SkippedClips(directory.path, arguments.data.max_skipped_fraction)
        translation = arguments.selection.task.kind == "translation"
        start = starting_point(arguments.model, translation=translation, token=training.hub_token)
        with first_goes_ahead():
            corpus = load_corpus(arguments, start, skipped, watchdog.beat)
        check_same_run(arguments, corpus)
        watchdog.enter("making the model")
        network = assemble(arguments, start, corpus, model_config(arguments, start, corpus))
        together = Together(stop, skipped, watchdog.beat)
        scorer = make_scorer(arguments, network, corpus, "predict", skipped, together)
        watchdog.enter("scoring")
        scored = scorer(network.trainable, network.frozen)
        results = results_of("predict", scored)
        from_first(lambda: _publish(arguments, corpus, scored, results, directory.path))
    return results


def _publish(arguments: Arguments, corpus: Corpus, scored: ScoredSplit, results: dict[str, Any], folder: Path) -> None:
    """Writes and shows the scores."""
    write_scores(folder, "predict", scored, "predictions.jsonl")
    write_json(folder / "results.json", {**scored.metrics, **_circumstances(arguments, corpus.synthetic)})
    write_record(folder, arguments, corpus, {"predict": scored})
    console.show_results(results, arguments, corpus, folder)


def _circumstances(arguments: Arguments, synthetic: bool) -> dict[str, Any]:
    """What the scores are of."""
    training, is_ctc = arguments.training, arguments.selection.task.kind == "ctc"
    windows = {name: getattr(training, name) for name in ("chunk_length_s", "stride_length_s")}
    return {
        "model": arguments.model.model_name_or_path,
        **({"target_lang": arguments.model.target_lang} if arguments.model.target_lang is not None else {}),
        "task": arguments.selection.task.name,
        "dataset": arguments.data.dataset_name,
        "config": arguments.data.dataset_config_name,
        "split": arguments.data.predict_split_name,
        "synthetic_speech": synthetic,
        **({"ctc_beams": training.ctc_beams} if is_ctc else {}),
        **(windows if training.chunk_length_s is not None else {}),
    }


if __name__ == "__main__":
    command.run_program(main)
