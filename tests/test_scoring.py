"""Scoring a split for retrieval when not all of its clips can be decoded: what is dropped, listed and counted."""

import logging
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from runs import rows

from xtremes_jax.corpus import SkippedClips
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.retrieval import Clips
from xtremes_jax.scoring import RetrievalScorer, warn_of_silence

LANGUAGES = ["fr_fr"] * 4 + ["en_us"] * 4
SENTENCES = list("abcd") * 2


class Split:
    """Eight clips; preparation has left out one more, which has no sentence id."""

    name, skipped = "test", [None]

    def __len__(self):
        return 8


class Scorer(RetrievalScorer):
    """Has its clips embedded: two clips of a sentence alike, and only those of some rows decoded."""

    def __init__(self, folder, decoded, broken=()):
        data = SimpleNamespace(key_language="en", per_lang_metrics=True, write_embeddings=False)
        self.arguments, self.corpus = SimpleNamespace(data=data), SimpleNamespace(distractors=None)
        self.split, self.role, self._skipped = Split(), "predict", SkippedClips(folder, 1.0)
        self._together = None
        self._loader, self._decoded, self._broken = None, list(decoded), list(broken)

    def _embed(self, split, loader, trainable, frozen) -> Clips:
        embeddings = np.tile(np.eye(4, dtype=np.float32), (2, 1))
        embeddings[self._broken] = np.nan
        every = Clips(embeddings, SENTENCES, LANGUAGES, [f"clip {row}" for row in range(8)], list(range(8)))
        return every.of(np.array(self._decoded, int))

    def score(self):
        return self._score({"logit_scale": jnp.log(10.0)}, {})


def test_keys_and_queries_that_all_decode_are_all_scored(tmp_path, caplog):
    scored = Scorer(tmp_path, range(8)).score()
    assert (scored.metrics["samples"], scored.metrics["keys"], scored.metrics["p_at_1"]) == (4, 4, 1.0)
    assert scored.unscored == 1 and not (tmp_path / "skipped.jsonl").exists() and not caplog.records


def test_a_query_whose_key_cannot_be_decoded_is_dropped_and_listed(tmp_path, caplog):
    scorer = Scorer(tmp_path, [0, 1, 2, 4, 6, 7])  # not the query d, nor the key b
    with caplog.at_level(logging.WARNING):
        scored = scorer.score()
        scorer.score()
    assert [row["id"] for row in scored.predictions] == ["clip 0", "clip 2"]
    assert (scored.metrics["samples"], scored.metrics["keys"]) == (2, 3)
    assert 0 < scored.metrics["loss"] < np.log(3)
    assert scored.unscored == 1 + 2 + 1
    assert rows(tmp_path / "skipped.jsonl") == [
        {"split": "test", "sample_id": 1, "clip": "clip 1", "reason": "no key of its sentence b could be decoded"}
    ]
    assert len(caplog.records) == 1, "told of once, however often the split is scored"


@pytest.mark.parametrize("decoded", [range(4), range(4, 8), [0, 1, 6, 7]])
def test_nothing_to_find_is_refused(tmp_path, decoded):
    with pytest.raises(InputError, match="no query has its key among them. See skipped.jsonl"):
        Scorer(tmp_path, decoded).score()


def test_embeddings_that_are_not_finite_are_told_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        scored = Scorer(tmp_path, range(8), broken=range(8)).score()
    assert "predict: 8 of 8 embeddings are not finite, and count as not found" in caplog.text
    assert (scored.metrics["p_at_1"], scored.metrics["p_at_5"]) == (0, 0)


@pytest.mark.parametrize("hypotheses, warned", [(["", "", ""], True), (["", "a", ""], False)])
def test_a_model_that_writes_nothing_at_all_is_warned_of(hypotheses, warned, caplog):
    warn_of_silence("eval", hypotheses)
    assert ("eval: all 3 hypotheses are empty" in caplog.text) == warned
