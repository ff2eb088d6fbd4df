"""Scoring a prepared split with a network: used during training, after it, and by `xtremes_jax.evaluate`."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xtremes_jax import console
from xtremes_jax.arguments import Arguments
from xtremes_jax.assembly import Network
from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.corpus import Corpus, SkippedClips
from xtremes_jax.data.buckets import PlannedBatch, rows_per_bucket
from xtremes_jax.data.loader import EvalLoader
from xtremes_jax.data.prepare import PreparedSplit, SkippedClip, without
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.predict import Predictions, ScoredSplit, predict, score_split
from xtremes_jax.evaluation.report import write_arrays, write_json, write_jsonl
from xtremes_jax.evaluation.retrieval import Clips, score_retrieval, with_keys
from xtremes_jax.long_recordings import LONG_SECONDS, Joiner, WindowLoader
from xtremes_jax.models import windowing
from xtremes_jax.tasks import is_key_language
from xtremes_jax.together import Together
from xtremes_jax.training import sharding
from xtremes_jax.training.ahead import CompiledAhead, memory_for
from xtremes_jax.training.step import make_embed_step, make_eval_step, make_window_step

logger = logging.getLogger(__name__)


def make_scorer(
    arguments: Arguments, network: Network, corpus: Corpus, role: str, skipped: SkippedClips, together: Together
) -> "Scorer":
    """What scores the split of a role ("eval" or "predict"), as the task asks for."""
    kind = arguments.selection.task.kind
    return (RetrievalScorer if kind == "retrieval" else Scorer)(arguments, network, corpus, role, skipped, together)


class Scorer:
    """Scores one split, any number of times; compiled once for each of its bucket lengths, ahead where it can be.

    Args:
        arguments: of the run.
        network: the model's structure and mesh; the parameters come with each call.
        corpus: where the split lies under the role `role`.
        role: "eval" or "predict".
        skipped: where clips that cannot be decoded are listed.
        together: with the other processes.
    """

    def __init__(
        self,
        arguments: Arguments,
        network: Network,
        corpus: Corpus,
        role: str,
        skipped: SkippedClips,
        together: Together,
    ):
        self.arguments, self.corpus, self.role, self._together = arguments, corpus, role, together
        self.split, self._skipped, self._mesh = corpus.splits[role], skipped, network.mesh
        self._objective = network.objective
        leading = (network.trainable, network.frozen)
        self.step = CompiledAhead(self._make_step(network), mesh=network.mesh, leading=leading)
        whole, self.windows = self._apart(network)
        self._loader = None if whole is None else self._make_loader(whole)
        self.window_step = None
        if self.windows is not None:
            step = make_window_step(
                graphdef=network.graphdef, mesh=network.mesh, ctc_beams=arguments.training.ctc_beams
            )
            self.window_step = CompiledAhead(step, mesh=network.mesh, leading=leading)

    def _make_step(self, network: Network):
        return make_eval_step(
            graphdef=network.graphdef,
            objective=network.objective,
            mesh=network.mesh,
            generation=network.generation,
            ctc_beams=self.arguments.training.ctc_beams,
        )

    def _apart(self, network: Network) -> tuple[PreparedSplit | None, WindowLoader | None]:
        """The clips that are scored in one pass, and those that are in windows; None where there are none."""
        training, split = self.arguments.training, self.split
        if training.chunk_length_s is None:
            warn_of_length(self.role, self.arguments.selection.task.kind, split.num_samples)
            return split, None
        cut = windowing(network.config, training.chunk_length_s, training.stride_length_s)
        is_long = split.num_samples > cut.length
        logger.info(
            "%s: %d of %d clips are longer than %.2f s, and scored in windows; they have no loss.",
            self.role, is_long.sum(), len(split), cut.length / SAMPLE_RATE,
        )  # fmt: skip
        if is_long.all() and self.role == "eval" and training.metric_for_best_model == "loss":
            raise InputError(
                f"All clips of split {split.name} are longer than --chunk_length_s {training.chunk_length_s:g}, so "
                "that they have no loss to choose the best checkpoint by. Add --metric_for_best_model wer, or raise "
                "--chunk_length_s."
            )
        rows = int(rows_per_bucket(np.array([cut.length]), multiple=self._mesh.size, **self._size())[0])
        whole = None if is_long.all() else without(split, set(split.rows[is_long].tolist()))
        if not is_long.any():
            return whole, None
        long = split if whole is None else without(split, set(split.rows[~is_long].tolist()))
        return whole, WindowLoader(long, cut, rows=rows, **self._place())

    def _size(self) -> dict[str, int]:
        """Of a batch."""
        seconds = self.arguments.data.max_eval_batch_seconds
        if seconds is None:
            return {"batch_size": self.arguments.training.per_device_eval_batch_size * self._mesh.size}
        return {"max_batch_samples": round(seconds * SAMPLE_RATE) * self._mesh.size}

    def _place(self) -> dict[str, Any]:
        """Of this process among all, and of batches on the devices."""
        return {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "sharding": sharding.batch_sharding(self._mesh),
        }

    def _make_loader(self, split: PreparedSplit) -> EvalLoader:
        return EvalLoader(
            split,
            multiple=self._mesh.size,
            max_buckets=self.arguments.data.max_buckets,
            num_workers=self.arguments.data.dataloader_num_workers,
            **self._place(),
            **self._size(),
        )

    def compile_ahead(self, after: CompiledAhead | None = None) -> None:
        """Has all programs of the split compiled in the background: by `after`'s threads, when its own are done."""
        self.step.announce(self.shapes(), after)
        if self.windows is not None:
            self.window_step.announce(self.windows.shapes(), self.step if after is None else after)

    def shapes(self) -> list[Batch]:
        """The different shapes of the batches of whole clips of a pass, as they come first."""
        return [] if self._loader is None else self._loader.shapes()

    def plan(self) -> list[PlannedBatch]:
        """The batches of whole clips of a pass, in order."""
        return [] if self._loader is None else self._loader.plan()

    def __call__(self, trainable: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> ScoredSplit:
        """Hypotheses and scores of the split with these parameters.

        Raises:
            InputError: nothing of it could be read.
            CompilationFailed: the program for one of its batches cannot be compiled.
        """
        begun = time.perf_counter()
        self._audio_seconds = self._padded_seconds = 0.0
        with self.step, self.window_step or nullcontext():
            self.compile_ahead()  # what no one has asked for yet
            scored = self._score(trainable, frozen)
        scored.metrics["runtime"] = time.perf_counter() - begun
        scored.metrics["padding"] = 1.0 - self._audio_seconds / self._padded_seconds
        return scored

    def _score(self, trainable: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> ScoredSplit:
        def eval_step(batch):
            with memory_for(batch):
                return jax.device_get(self.step(trainable, frozen, batch))

        with self._on_devices(self._loader, self.windows) as bar:
            predictions = Predictions({}, float("nan"), None)
            if self._loader is not None:
                predictions = predict(eval_step, self._batches(self._loader), bar.update)
            if self.windows is not None:
                predictions.ids.update(self._windowed(trainable, frozen, bar.update))
        if predictions.cut_off:
            logger.warning(
                "%s: %d of %d sentences were cut off at --generation_max_length before their end.",
                self.role, predictions.cut_off, len(predictions.ids),
            )  # fmt: skip
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
        if self.arguments.selection.task.kind == "ctc":
            warn_of_silence(self.role, [row["prediction"] for row in scored.predictions])
        if self.windows is not None:
            scored.metrics["windowed_clips"] = len(self.windows.split)
        return dataclasses.replace(scored, unscored=len(self.split.raw.clip_names) - scored.metrics["samples"])

    def _windowed(self, trainable, frozen, on_batch) -> dict[int, np.ndarray]:
        """Token ids of the clips that are scored in windows, by sample id."""
        joiner = Joiner(self.windows.batches, blank=self._objective.blank, beams=self.arguments.training.ctc_beams)
        found: dict[int, np.ndarray] = {}
        for loaded in self._batches(self.windows):
            with memory_for(loaded.batch):
                frames, sample_ids = jax.device_get(self.window_step(trainable, frozen, loaded.batch))
            for number, tokens in joiner.add(loaded.global_step, frames, sample_ids >= 0):
                found[int(self.windows.split.rows[number])] = tokens
            on_batch()
        return found

    @contextmanager
    def _on_devices(self, *loaders: EvalLoader | WindowLoader | None):
        hidden = self.arguments.training.disable_tqdm
        total = sum(len(loader) for loader in loaders if loader is not None)
        with jax.set_mesh(self._mesh), console.split_bar(self.role, total, hidden) as bar:
            yield bar

    def _batches(self, loader: EvalLoader | WindowLoader):
        for loaded in loader:
            self._together.at_batch(loaded.skipped)
            self._audio_seconds += loaded.audio_seconds
            self._padded_seconds += loaded.padded_seconds
            yield loaded
        self._skipped.tell()


def warn_of_length(role: str, kind: str, num_samples: np.ndarray) -> None:
    """Warns of clips of recognition so long that one pass over them may not fit, and says what helps."""
    count = int(np.sum(num_samples > LONG_SECONDS * SAMPLE_RATE))
    if kind == "ctc" and count:
        logger.warning(
            "%s: %d clips are longer than %d s, the longest %.0f s, and each is computed in one pass, whose memory "
            "grows with the square of its length. Windows bound it: add --chunk_length_s 30.",
            role, count, LONG_SECONDS, np.max(num_samples) / SAMPLE_RATE,
        )  # fmt: skip


def warn_of_silence(role: str, hypotheses: Sequence[str]) -> None:
    """Warns when a model of recognition has written nothing for any clip, and says what helps."""
    if not any(hypotheses):
        logger.warning(
            "%s: all %d hypotheses are empty: the model finds the blank likeliest everywhere. That is usual in the "
            "first thousand steps. If it stays so, raise --learning_rate or the number of steps, lower "
            "--mask_time_prob, and look at the losses in metrics.jsonl, which should fall below 3.",
            role, len(hypotheses),
        )  # fmt: skip


class RetrievalScorer(Scorer):
    """Scores a split by searching every query in the whole pool of keys; arguments as of `Scorer`."""

    def _make_step(self, network: Network):
        return make_embed_step(graphdef=network.graphdef, mesh=network.mesh)

    @cached_property
    def _distractors(self) -> EvalLoader | None:
        extra = self.corpus.distractors
        return None if extra is None else self._make_loader(extra)

    def plan(self) -> list[PlannedBatch]:
        return super().plan() + ([] if self._distractors is None else self._distractors.plan())

    def shapes(self) -> list[Batch]:
        return super().shapes() + ([] if self._distractors is None else self._distractors.shapes())

    def _score(self, trainable: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> ScoredSplit:
        clips = self._embed(self.split, self._loader, trainable, frozen)
        key_language = self.arguments.data.key_language
        is_key = np.array([is_key_language(language, key_language) for language in clips.languages], bool)
        queries, keys = clips.of(np.flatnonzero(~is_key)), clips.of(np.flatnonzero(is_key))
        queries, alone = self._with_keys(queries, keys)
        # Keys, and what never had one, are no queries that went unscored.
        unscored = len(self.split.skipped) + len(self.split) - len(clips.names) + len(alone.names)
        extra = self.corpus.distractors
        if extra is not None:
            found = self._embed(extra, self._distractors, trainable, frozen)
            found = dataclasses.replace(found, sample_ids=[-1] * len(found.names))
            keys, clips = keys.join(found), clips.join(found)
        scored = score_retrieval(
            queries, keys, scale=self._scale(trainable), per_language=self.arguments.data.per_lang_metrics
        )
        if scored.metrics["nonfinite_clips"]:
            logger.warning(
                "%s: %d of %d embeddings are not finite, and count as not found. The model's parameters may hold NaN.",
                self.role, scored.metrics["nonfinite_clips"], scored.metrics["samples"] + scored.metrics["keys"],
            )  # fmt: skip
        scored = dataclasses.replace(scored, unscored=unscored)
        if self.arguments.data.write_embeddings:
            scored = dataclasses.replace(scored, arrays=clips.arrays())
        return scored

    def _with_keys(self, queries: Clips, keys: Clips) -> tuple[Clips, Clips]:
        """The queries that have a key among those that could be decoded, and the others, which are listed."""
        kept, alone = with_keys(queries, keys)
        if not kept.names:
            raise InputError(
                f"Split {self.split.name} cannot be scored: {len(queries.names)} queries and {len(keys.names)} keys of "
                "it could be decoded, and no query has its key among them. See skipped.jsonl for what is unreadable, "
                "and repair it."
            )
        reason = "no key of its sentence {} could be decoded"
        self._skipped.note(
            SkippedClip(self.split.name, row, name, reason.format(sentence))
            for row, name, sentence in zip(alone.sample_ids, alone.names, alone.sentences, strict=True)
        )
        return kept, alone

    def _scale(self, trainable: dict[str, jax.Array]) -> float:
        return float(np.exp(sharding.to_host(trainable["logit_scale"])))

    def _embed(self, split: PreparedSplit, loader: EvalLoader, trainable, frozen) -> Clips:
        """Embeddings of all clips of a split that can be read, in the order of the split."""
        found: dict[int, np.ndarray] = {}
        with self._on_devices(loader) as bar:
            for loaded in self._batches(loader):
                with memory_for(loaded.batch):
                    embeddings, rows = jax.device_get(self.step(trainable, frozen, loaded.batch))
                found |= {int(row): embeddings[place] for place, row in enumerate(rows) if row >= 0}
                bar.update()
        kept = [index for index, row in enumerate(split.rows) if int(row) in found]
        if not kept:
            raise InputError(f"None of split {split.name} could be read. See skipped.jsonl.")
        return Clips(
            np.stack([found[int(split.rows[index])] for index in kept]),
            sentences=[split.references[index] for index in kept],
            languages=[split.languages[index] for index in kept],
            names=[split.clip_names[index] for index in kept],
            sample_ids=[int(split.rows[index]) for index in kept],
        )


def results_of(role: str, scored: ScoredSplit) -> dict[str, Any]:
    """The metrics with the role before each name."""
    return {f"{role}_{name}": value for name, value in scored.metrics.items()}


def write_scores(directory: Path, role: str, scored: ScoredSplit, predictions_name: str) -> None:
    """Writes `<role>_results.json`, the predictions, and beside them the embeddings if there are any."""
    write_json(directory / f"{role}_results.json", results_of(role, scored))
    write_jsonl(directory / predictions_name, scored.predictions)
    if scored.arrays is not None:
        write_arrays(directory / predictions_name.replace("predictions.jsonl", "embeddings.npz"), scored.arrays)
