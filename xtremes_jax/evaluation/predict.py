"""A split in, hypotheses beside references and their scores out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.decode import to_sentences, to_text
from xtremes_jax.evaluation.metrics import Scores, score
from xtremes_jax.tasks import TaskSpec


@dataclass(frozen=True)
class ScoredSplit:
    """The result of evaluating a model on a split.

    `metrics` has the averages under the metric's plain name ("wer") and each language's as "wer_<language>", of
    translation also those of groups of languages ("bleu_high"), the mean "loss", and the number of "samples";
    `predictions` has one dict a clip: id, sample_id, language, reference and
    prediction.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    scores: Scores
    arrays: dict[str, np.ndarray] | None = None
    """Embeddings of the clips and what they belong to, where they are to be written out."""
    unscored: int = 0
    """Clips of the split that should have been scored and could not: they, or all that they ask for, are unreadable."""


class Predictions(NamedTuple):
    """What a model says of a split."""

    ids: dict[int, np.ndarray]
    """Sample id -> predicted ids, as `training.step.Prediction` has them, without padding."""
    loss: float
    """Mean over the clips; in translation over the tokens."""
    cut_off: int | None
    """Translation: sentences that hit the length limit before their end."""


def predict(eval_step: Callable, batches: Iterable, on_batch: Callable[[], None]) -> Predictions:
    """Runs a model over batches.

    Args:
        eval_step: batch -> `training.step.Prediction`, on the host.
        batches: of an evaluation loader; filler rows are left out here.
        on_batch: called after each batch, for a progress bar.
    """
    ids: dict[int, np.ndarray] = {}
    loss_sum, weight, cut_off = 0.0, 0.0, None
    for loaded in batches:
        prediction = eval_step(loaded.batch)
        sample_ids = np.asarray(prediction.sample_ids)
        real = sample_ids >= 0
        if prediction.cut_off is not None:
            cut_off = (cut_off or 0) + int(prediction.cut_off[real].sum())
        for row in np.flatnonzero(real):
            raw = prediction.ids[row]
            ids[int(sample_ids[row])] = raw[: prediction.lengths[row]] if raw.ndim else raw
        loss_sum += float(prediction.loss_sum)
        weight += float(prediction.weight)
        on_batch()
    return Predictions(ids, loss_sum / weight if weight else float("nan"), cut_off)


def score_split(
    task: TaskSpec,
    predictions: Predictions,
    *,
    sample_ids: Sequence[int],
    references: Sequence[str],
    languages: Sequence[str],
    clip_names: Sequence[str],
    tokenizer=None,
    label_names: Sequence[str] | None = None,
    per_language: bool = True,
) -> ScoredSplit:
    """Turns predicted ids into text or names of classes, and scores them as the XTREME-S metric does.

    Clips whose ids are missing (they could not be decoded) are left out here; the loader has listed them.

    Args:
        predictions: from `predict`.
        sample_ids, references, languages, clip_names: one entry a clip of the split. A reference is the clean
            transcript or translation, or the name of the class.
        tokenizer: of a model that predicts text.
        label_names: of a classification model, by class id.
        per_language: average over languages instead of pooling all clips.

    Raises:
        InputError: no clip is left to score.
    """
    ids = predictions.ids
    kept = [i for i, sample_id in enumerate(sample_ids) if int(sample_id) in ids]
    if not kept:
        raise InputError("There is no clip to score: none of the split could be read. See skipped.jsonl.")
    raw = [ids[int(sample_ids[i])] for i in kept]
    if task.kind == "ctc":
        hypotheses = to_text(tokenizer, [row.tolist() for row in raw])
    elif task.kind == "translation":
        hypotheses = to_sentences(tokenizer, raw)
    else:
        hypotheses = [label_names[int(label)] for label in raw]
    kept_references = [references[i] for i in kept]
    scores = score(task, hypotheses, kept_references, [languages[i] for i in kept], per_language=per_language)
    metrics = dict(scores.average)
    if per_language:
        for language, values in scores.per_language.items():
            metrics |= {f"{name}_{language}": value for name, value in values.items()}
        metrics |= scores.groups
    metrics |= {"loss": predictions.loss, "samples": len(kept)}
    if predictions.cut_off is not None:
        metrics["cut_off_sentences"] = predictions.cut_off
    rows = [
        {
            "id": clip_names[i],
            "sample_id": int(sample_ids[i]),
            "language": languages[i],
            "reference": references[i],
            "prediction": hypothesis,
        }
        for i, hypothesis in zip(kept, hypotheses, strict=True)
    ]
    return ScoredSplit(metrics, rows, scores)
