"""From a decoder's token ids to scores and predictions."""

import numpy as np
import pytest
import sacrebleu

from xtremes_jax.data.subwords import encode_targets, learn_tokenizer
from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.predict import Predictions, score_split
from xtremes_jax.tasks import TASKS

WORDS = "the teacher sees a red bicycle near the river and buys fresh bread in the city".split()


def test_translations_are_decoded_and_scored_by_direction_and_group(rng):
    references = [" ".join(rng.choice(WORDS, rng.integers(5, 12))) for _ in range(12)]
    said = [text.replace("red", "black").replace("the", "a") for text in references]
    tokenizer = learn_tokenizer([*references, *said], vocab_size=70)
    labels, _ = encode_targets(tokenizer, said)
    # Generated rows start with the decoder's start token and are padded; clip 3 could not be decoded.
    ids = {10 + row: np.array([2, *label, 1, 1]) for row, label in enumerate(labels) if row != 3}
    languages = ["fr.en", "it.en"] * 6
    names = [f"clip {row}" for row in range(12)]
    split = {"sample_ids": range(10, 22), "references": references, "languages": languages, "clip_names": names}
    scored = score_split(TASKS["covost2"], Predictions(ids, 1.5, 2), tokenizer=tokenizer, **split)
    kept = [row for row in range(12) if row != 3]
    assert [row["prediction"] for row in scored.predictions] == [said[row] for row in kept]
    assert scored.predictions[3] == {
        "id": "clip 4", "sample_id": 14, "language": "fr.en", "reference": references[4], "prediction": said[4],
    }  # fmt: skip
    by_hand = {
        name: sacrebleu.corpus_bleu([said[row] for row in rows], [[references[row] for row in rows]]).score
        for name in ("fr.en", "it.en")
        for rows in [[row for row in kept if languages[row] == name]]
    }
    assert scored.metrics == {
        "bleu": pytest.approx(np.mean(list(by_hand.values()))), "loss": 1.5, "samples": 11,
        "bleu_fr.en": by_hand["fr.en"], "bleu_it.en": by_hand["it.en"],
        "bleu_high": by_hand["fr.en"], "bleu_mid": by_hand["it.en"], "cut_off_sentences": 2,
    }  # fmt: skip
    pooled = score_split(TASKS["covost2"], Predictions(ids, 1.5, 2), tokenizer=tokenizer, per_language=False, **split)
    assert set(pooled.metrics) == {"bleu", "loss", "samples", "cut_off_sentences"}
    with pytest.raises(InputError, match=r"no clip to score"):
        score_split(TASKS["covost2"], Predictions({}, 0.0, None), tokenizer=tokenizer, **split)
