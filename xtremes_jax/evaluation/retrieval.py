"""Retrieval scored: every query against the whole pool of keys, language by language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

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

    @property
    def finite(self) -> Bool[np.ndarray, " clips"]:
        """Whether all of a clip's embedding is finite: nothing can be compared with what is not."""
        return np.isfinite(self.embeddings).all(axis=1)

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

    A key whose embedding is not finite is found by nobody, and a query whose embedding is not finite finds nothing: it
    scores 0, its rank is None, and the loss of the split is NaN. "nonfinite_clips" counts both.

    Args:
        queries: each with at least one key of its sentence; see `with_keys`.
        keys: the whole pool, distractors included.
        scale: what cosines are multiplied with for the loss: the inverse of the learned temperature.
        per_language: average over languages, each with the same weight, in place of pooling all queries. The margin of
            xsim depends on the other queries: with it those of one language, without it all.
    """
    query_labels, key_labels = _numbered(queries.sentences, keys.sentences)
    keys_of_label = np.bincount(key_labels[key_labels != UNKNOWN], minlength=int(query_labels.max()) + 1)
    chances = keys_of_label[query_labels] / len(key_labels)
    pool = np.flatnonzero(keys.finite)
    able = queries.finite & (len(pool) > 0)
    ranks, losses, first = _search(queries, keys, query_labels, key_labels, able, pool, scale)

    def scores_of(rows: np.ndarray) -> dict[str, float]:
        searched = rows[able[rows]]
        found = 0
        if len(searched):
            matches = margin_matches(queries.embeddings[searched], keys.embeddings[pool], k=NEIGHBOURS)
            found = int(np.sum(hits(matches, query_labels[searched], key_labels[pool])))
        return {
            "p_at_1": float(np.mean(ranks[rows] <= 1)),
            "p_at_5": float(np.mean(ranks[rows] <= 5)),
            "mrr": float(np.mean(1.0 / ranks[rows])),
            "xsim_error": 1.0 - found / len(rows),
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
    metrics |= {"loss": float(np.mean(losses)), "samples": len(languages), "keys": len(key_labels)}
    metrics["nonfinite_clips"] = int(np.sum(~queries.finite)) + len(key_labels) - len(pool)
    counts = {language: int(np.sum(languages == language)) for language in by_language}
    predictions = _predictions(queries, keys, first, ranks)
    return ScoredSplit(metrics, predictions, Scores(average, by_language, counts))


def with_keys(queries: Clips, keys: Clips) -> tuple[Clips, Clips]:
    """The queries that have a key of their sentence, and the others."""
    known = set(keys.sentences)
    has_key = np.array([sentence in known for sentence in queries.sentences], bool)
    return queries.of(np.flatnonzero(has_key)), queries.of(np.flatnonzero(~has_key))


def _search(
    queries: Clips,
    keys: Clips,
    query_labels: Int[np.ndarray, " queries"],
    key_labels: Int[np.ndarray, " keys"],
    able: Bool[np.ndarray, " queries"],
    pool: Int[np.ndarray, " pool"],
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank of the first right key (infinite where none can be found), loss (NaN there) and index of the first key.

    Only the `able` queries are compared, with the keys of the `pool`; of the others the index is -1.
    """
    ranks, losses = np.full(len(able), np.inf), np.full(len(able), np.nan)
    first = np.full(len(able), -1, np.int64)
    if able.any():
        embeddings, labels = keys.embeddings[pool], key_labels[pool]
        found = find(queries.embeddings[able], embeddings, query_labels[able], labels, scale=scale)
        has_key = np.isin(query_labels[able], labels)
        ranks[able] = np.where(has_key, found.ranks, np.inf)
        losses[able] = np.where(has_key, found.losses, np.nan)
        first[able] = pool[top_k(queries.embeddings[able], embeddings, 1).indices[:, 0]]
    return ranks, losses, first


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
    """`first` is the place of each query's first key, -1 where there is none."""
    return [
        {
            "id": queries.names[row],
            "sample_id": int(queries.sample_ids[row]),
            "language": queries.languages[row],
            "reference": queries.sentences[row],
            "prediction": (keys.sentences[first[row]] or None) if first[row] >= 0 else None,
            "prediction_id": keys.names[first[row]] if first[row] >= 0 else None,
            "rank": int(ranks[row]) if np.isfinite(ranks[row]) else None,
        }
        for row in range(len(ranks))
    ]
