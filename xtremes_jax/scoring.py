"""Scoring a prepared split with a network: used during training, after it, and by `xtremes_jax.evaluate`."""

import logging
import time
from pathlib import Path
from typing import Any

import jax

from xtremes_jax import console
from xtremes_jax.arguments import Arguments
from xtremes_jax.assembly import Network
from xtremes_jax.corpus import Corpus, SkippedClips
from xtremes_jax.data.loader import EvalLoader
from xtremes_jax.evaluation.predict import ScoredSplit, predict, score_split
from xtremes_jax.evaluation.report import write_json, write_jsonl
from xtremes_jax.training import sharding
from xtremes_jax.training.step import make_eval_step

logger = logging.getLogger(__name__)


class Scorer:
    """Scores one split, any number of times; compiled once for each of its bucket lengths.

    Args:
        arguments: of the run.
        network: the model's structure and mesh; the parameters come with each call.
        corpus: where the split lies under the role `role`.
        role: "eval" or "predict".
        skipped: where clips that cannot be decoded are listed.
    """

    def __init__(self, arguments: Arguments, network: Network, corpus: Corpus, role: str, skipped: SkippedClips):
        self.arguments, self.corpus, self.role = arguments, corpus, role
        self.split, self._skipped, self._mesh = corpus.splits[role], skipped, network.mesh
        self._step = make_eval_step(
            graphdef=network.graphdef,
            objective=network.objective,
            mesh=network.mesh,
            generation=network.generation,
        )
        self._loader = EvalLoader(
            self.split,
            batch_size=arguments.training.per_device_eval_batch_size * network.mesh.size,
            multiple=network.mesh.size,
            max_buckets=arguments.data.max_buckets,
            num_workers=arguments.data.dataloader_num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            sharding=sharding.batch_sharding(network.mesh),
        )

    def __call__(self, trainable: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> ScoredSplit:
        """Hypotheses and scores of the split with these parameters."""
        training, begun = self.arguments.training, time.perf_counter()

        def eval_step(batch):
            return self._step(trainable, frozen, batch)

        with jax.set_mesh(self._mesh), console.split_bar(self.role, len(self._loader), training.disable_tqdm) as bar:
            predictions = predict(eval_step, self._batches(), bar.update)
        scored = score_split(
            self.arguments.selection.task,
            predictions,
            sample_ids=self.split.rows,
            references=self.split.references,
            languages=self.split.languages,
            clip_names=self.split.clip_names,
            tokenizer=self.corpus.tokenizer,
            label_names=self.corpus.label_names,
            per_language=self.arguments.data.per_lang_metrics,
        )
        if predictions.cut_off:
            logger.warning(
                "%s: %d of %d sentences were cut off at --generation_max_length before their end.",
                self.role, predictions.cut_off, len(predictions.ids),
            )  # fmt: skip
        scored.metrics["runtime"] = time.perf_counter() - begun
        scored.metrics["padding"] = 1.0 - self._audio_seconds / self._padded_seconds
        return scored

    def _batches(self):
        self._audio_seconds = self._padded_seconds = 0.0
        for loaded in self._loader:
            self._skipped.add(loaded.skipped)
            self._audio_seconds += loaded.audio_seconds
            self._padded_seconds += loaded.padded_seconds
            yield loaded


def write_scores(directory: Path, role: str, scored: ScoredSplit, predictions_name: str) -> dict[str, Any]:
    """Writes `<role>_results.json` and the predictions; returns the results with the role before each name."""
    results = {f"{role}_{name}": value for name, value in scored.metrics.items()}
    write_json(directory / f"{role}_results.json", results)
    write_jsonl(directory / predictions_name, scored.predictions)
    return results
