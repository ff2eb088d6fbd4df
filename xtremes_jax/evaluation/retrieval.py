"""Retrieval scored: every query against the whole pool of keys, language by language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from xtremes_jax.evaluation.metrics import Scores
from xtremes_jax.evaluation.predict import ScoredSplit
from xtremes_jax.evaluation.search import find, hits, margin_matches, top_k

NEIGHBOURS = 4
"""k of the margin-based match, as LASER's xsim has it."""

UNKNOWN = -1
"""Label of a distractor: no query has it."""


@dataclass(frozen=True)
class Clips:
    """Embedded clips, N of them."""

    embeddings: Float32[np.ndarray, "clips embedding"]
    """Of length 1."""
    sentences: Sequence[str]
    """The sentence's id; "" of distractors, which belong to no sentence."""
    languages: Sequence[str]
    names: Sequence[str]
    """What a person knows each clip by."""
    sample_ids: Sequence[int]
    """Row of each clip in its split; -1 of distractors."""

    def of(self, rows: np.ndarray) -> "Clips":
        """Some of the clips."""
        texts = [[values[row] for row in rows] for values in (self.sentences, self.languages, self.names)]
        return Clips(self.embeddings[rows], *texts, [self.sample_ids[row] for row in rows])

    def join(self, other: "Clips") -> "Clips":
        """These clips and then the others."""
        return Clips(
            np.concatenate([self.embeddings, other.embeddings]),
            [*self.sentences, *other.sentences],
            [*self.languages, *other.languages],
            [*self.names, *other.names],
            [*self.sample_ids, *other.sample_ids],
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """What `embeddings.npz` holds: embeddings float32, and the clips' ids, languages and sentence ids as text."""
        texts = {"ids": self.names, "languages": self.languages, "sentence_ids": self.sentences}
        return {"embeddings": self.embeddings} | {name: np.array(values, str) for name, values in texts.items()}


def score_retrieval(queries: Clips, keys: Clips, *, scale: float, per_language: bool) -> ScoredSplit:
    """Precision at 1 and 5, mean reciprocal rank and xsim error of every query among all keys.

    A hit is any key of the query's sentence. `metrics` also has each language's scores, the "loss" (minus the logarithm
    of the softmax probability of the right keys, in nats, the mean over the queries), the number of "samples" (queries)
    and "keys", and "chance_p_at_1": the precision of keys drawn at random. `predictions` has one dict a query: id,
    sample_id, language, reference (its sentence's id), prediction (that of the first key) and rank.

    Args:
        queries: each with at least one key of its sentence.
        keys: the whole pool, distractors included.
        scale: what cosines are multiplied with for the loss: the inverse of the learned temperature.
        per_language: average over languages, each with the same weight, in place of pooling all queries. The margin of
            xsim depends on the other queries: with it those of one language, without it all.
    """
    query_labels, key_labels = _numbered(queries.sentences, keys.sentences)
    found = find(queries.embeddings, keys.embeddings, query_labels, key_labels, scale=scale)
    first = top_k(queries.embeddings, keys.embeddings, 1).indices[:, 0]
    keys_of_label = np.bincount(key_labels[key_labels != UNKNOWN], minlength=int(query_labels.max()) + 1)
    chances = keys_of_label[query_labels] / len(key_labels)

    def scores_of(rows: np.ndarray) -> dict[str, float]:
        ranks = found.ranks[rows]
        matches = margin_matches(queries.embeddings[rows], keys.embeddings, k=NEIGHBOURS)
        return {
            "p_at_1": float(np.mean(ranks <= 1)),
            "p_at_5": float(np.mean(ranks <= 5)),
            "mrr": float(np.mean(1.0 / ranks)),
            "xsim_error": float(np.mean(~hits(matches, query_labels[rows], key_labels))),
            "chance_p_at_1": float(np.mean(chances[rows])),
        }

    languages = np.array(queries.languages)
    by_language = {
        language: scores_of(np.flatnonzero(languages == language)) for language in sorted(set(queries.languages))
    }
    if per_language:
        names = next(iter(by_language.values()))
        average = {name: float(np.mean([scores[name] for scores in by_language.values()])) for name in names}
    else:
        average = scores_of(np.arange(len(languages)))
    metrics = dict(average)
    if per_language:
        metrics |= {f"{name}_{key}": value for key, scores in by_language.items() for name, value in scores.items()}
    metrics |= {"loss": float(np.mean(found.losses)), "samples": len(languages), "keys": len(key_labels)}
    counts = {language: int(np.sum(languages == language)) for language in by_language}
    predictions = _predictions(queries, keys, first, found.ranks)
    return ScoredSplit(metrics, predictions, Scores(average, by_language, counts))


def _numbered(
    query_sentences: Sequence[str], key_sentences: Sequence[str]
) -> tuple[Int[np.ndarray, " queries"], Int[np.ndarray, " keys"]]:
    """Sentence ids as small numbers, the same on both sides; `UNKNOWN` where there is none."""
    numbers = {"": UNKNOWN}
    for sentence in (*query_sentences, *key_sentences):
        numbers.setdefault(sentence, len(numbers) - 1)
    one, other = ([numbers[sentence] for sentence in side] for side in (query_sentences, key_sentences))
    return np.array(one, np.int32), np.array(other, np.int32)


def _predictions(queries: Clips, keys: Clips, first: np.ndarray, ranks: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "id": queries.names[row],
            "sample_id": int(queries.sample_ids[row]),
            "language": queries.languages[row],
            "reference": queries.sentences[row],
            "prediction": keys.sentences[first[row]] or None,
            "prediction_id": keys.names[first[row]],
            "rank": int(ranks[row]),
        }
        for row in range(len(ranks))
    ]
