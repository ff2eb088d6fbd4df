"""Scores of retrieval by hand: ranks, chance, and embeddings that are not finite."""

import numpy as np
import pytest

from xtremes_jax.evaluation.retrieval import Clips, score_retrieval, with_keys


def clips(embeddings, sentences, language) -> Clips:
    names = [f"{language} {place}" for place in range(len(sentences))]
    languages = [language] * len(sentences)
    return Clips(np.array(embeddings, np.float32), list(sentences), languages, names, list(range(len(sentences))))


def unit(rng, count, dim=8):
    vectors = rng.standard_normal((count, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scored(queries, keys, per_language=True):
    return score_retrieval(queries, keys, scale=5.0, per_language=per_language)


@pytest.mark.parametrize("per_language", [True, False])
def test_a_model_of_nan_scores_nothing(per_language):
    sentences = list("abc")
    nothing = np.full((3, 4), np.nan)
    found = scored(clips(nothing, sentences, "fr"), clips(nothing, sentences, "en"), per_language)
    assert [found.metrics[name] for name in ("p_at_1", "p_at_5", "mrr", "xsim_error")] == [0, 0, 0, 1]
    assert np.isnan(found.metrics["loss"]) and found.metrics["nonfinite_clips"] == 6
    assert found.metrics["chance_p_at_1"] == pytest.approx(1 / 3)
    assert all(row["rank"] is row["prediction"] is row["prediction_id"] is None for row in found.predictions)


def test_a_query_that_is_not_finite_finds_nothing_and_harms_no_other(rng):
    sentences = list("abcdefgh")
    queries, keys = unit(rng, 8), unit(rng, 8)
    whole = scored(clips(queries, sentences, "fr"), clips(keys, sentences, "en"))
    assert whole.metrics["nonfinite_clips"] == 0 and np.isfinite(whole.metrics["loss"])
    queries[3, 1] = np.inf
    broken = scored(clips(queries, sentences, "fr"), clips(keys, sentences, "en"))
    ranks = [row["rank"] for row in broken.predictions]
    assert ranks[3] is None and broken.metrics["nonfinite_clips"] == 1
    others = [row["rank"] for place, row in enumerate(whole.predictions) if place != 3]
    assert [rank for rank in ranks if rank is not None] == others
    assert broken.metrics["mrr"] == pytest.approx(sum(1 / rank for rank in others) / 8)
    assert broken.metrics["p_at_1"] == pytest.approx(sum(rank == 1 for rank in others) / 8)


def test_a_key_that_is_not_finite_is_found_by_nobody(rng):
    sentences = list("abcdefgh")
    queries, keys = unit(rng, 8), unit(rng, 8)
    fewer = scored(clips(queries[1:], sentences[1:], "fr"), clips(keys[1:], sentences[1:], "en"))
    keys[0] = np.nan
    broken = scored(clips(queries, sentences, "fr"), clips(keys, sentences, "en"))
    assert broken.predictions[0]["rank"] is None and broken.metrics["nonfinite_clips"] == 1
    assert [row["rank"] for row in broken.predictions[1:]] == [row["rank"] for row in fewer.predictions]
    assert [row["prediction"] for row in broken.predictions[1:]] == [row["prediction"] for row in fewer.predictions]
    for metric in ("p_at_1", "p_at_5", "mrr"):
        assert broken.metrics[metric] == pytest.approx(fewer.metrics[metric] * 7 / 8)
    assert broken.metrics["keys"] == 8, "the key is one of those to find"
    # Of two keys of a sentence the other one still serves.
    twice = clips(np.r_[keys, [queries[0]]], [*sentences, "a"], "en")
    assert scored(clips(queries, sentences, "fr"), twice).predictions[0]["rank"] == 1


def test_queries_without_a_key_are_parted_from_the_others(rng):
    queries = clips(unit(rng, 5), "abcab", "fr")
    kept, alone = with_keys(queries, clips(unit(rng, 3), "bbd", "en"))
    assert (kept.names, kept.sample_ids) == (["fr 1", "fr 4"], [1, 4]) and list(kept.sentences) == ["b", "b"]
    assert alone.names == ["fr 0", "fr 2", "fr 3"]
    np.testing.assert_array_equal(kept.embeddings, queries.embeddings[[1, 4]])
