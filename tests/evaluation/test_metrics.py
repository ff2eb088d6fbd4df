"""Scores against hand counts, brute force, and the figures that the XTREME-S metric's own page gives."""

import math
from fractions import Fraction

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from xtremes_jax.evaluation.metrics import (
    BLEU_GROUPS,
    accuracy,
    bleu,
    character_error_rate,
    macro_f1,
    score,
    word_error_rate,
)
from xtremes_jax.tasks import TASKS


def edits(prediction, reference) -> int:
    """Levenshtein distance by the textbook recurrence."""
    row = list(range(len(prediction) + 1))
    for i, wanted in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, found in enumerate(prediction, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (wanted != found))
    return row[-1]


def test_published_example():
    references = ["it is sunny here", "paper and pen are essentials"]
    predictions = ["it's sunny", "paper pen are essential"]
    # 3 edits to "it is sunny here" (one substituted, two left out), 2 to the other; 4 + 5 words.
    assert word_error_rate(predictions, references) == 5 / 9
    assert round(character_error_rate(predictions, references), 2) == 0.27
    assert round(macro_f1([0, 1, 1, 0, 0], [0, 1, 0, 0, 1]), 2) == 0.58
    assert accuracy([0, 1, 1, 0, 0], [0, 1, 0, 0, 1]) == 0.6


def test_pooling_weighs_clips_by_their_length():
    assert word_error_rate(["a", "x"], ["a", "b c d"]) == 3 / 4  # not the mean of 0 and 1


def test_characters_count_single_spaces_and_squeeze_the_rest():
    assert character_error_rate(["ab"], ["a b"]) == 1 / 3
    assert character_error_rate(["  a   b "], ["a b"]) == 0.0
    assert word_error_rate(["  a   b "], ["a b"]) == 0.0


def test_case_and_punctuation_are_not_touched():
    assert word_error_rate(["Word,"], ["word"]) == 1.0


def test_composed_and_decomposed_letters_differ():
    assert character_error_rate(["e\u0301"], ["\u00e9"]) == 2.0


def test_empty_references():
    assert word_error_rate(["x y", "a b"], ["", "a b"]) == 2 / 2  # two insertions over the two words of the other clip
    assert character_error_rate(["x y", "a"], [" ", "a"]) == 3 / 1
    assert word_error_rate([""], [""]) == 0.0
    assert word_error_rate(["x y"], [""]) == 2.0
    assert word_error_rate([""], ["a b"]) == 1.0


@pytest.mark.parametrize("metric", [word_error_rate, character_error_rate, accuracy, macro_f1, bleu])
def test_nothing_to_score_and_uneven_lists_are_errors(metric):
    with pytest.raises(ValueError, match="no clips"):
        metric([], [])
    with pytest.raises(ValueError, match="1 predictions were given for 2 references"):
        metric(["a"], ["a", "b"])


sentences = st.lists(st.tuples(st.text("ab ", max_size=8), st.text("ab ", max_size=8)), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(sentences)
def test_error_rates_equal_brute_force(pairs):
    predictions, references = [list(side) for side in zip(*pairs, strict=True)]
    for metric, split in (
        (word_error_rate, str.split),
        (character_error_rate, lambda text: list(" ".join(text.split()))),
    ):
        errors = sum(edits(split(p), split(r)) for p, r in zip(predictions, references, strict=True))
        total = sum(len(split(reference)) for reference in references)
        assert metric(predictions, references) == pytest.approx(errors / max(total, 1), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_macro_f1_equals_precision_and_recall_by_counting(pairs):
    predictions, references = [list(side) for side in zip(*pairs, strict=True)]
    scores = []
    for label in set(predictions) | set(references):
        hits = sum(p == r == label for p, r in pairs)
        precision = Fraction(hits, max(predictions.count(label), 1))
        recall = Fraction(hits, max(references.count(label), 1))
        scores.append(2 * precision * recall / (precision + recall) if hits else Fraction(0))
    assert macro_f1(predictions, references) == pytest.approx(float(sum(scores) / len(scores)), rel=1e-12)
    names = [f"class {label}" for label in predictions], [f"class {label}" for label in references]
    assert macro_f1(*names) == pytest.approx(macro_f1(predictions, references), rel=1e-12)


def test_languages_have_equal_weight_when_averaged_and_clips_when_pooled():
    predictions, references = ["a", "a", "a", "x"], ["a", "a", "a", "b"]
    languages = ["pl", "pl", "pl", "de"]
    averaged = score(TASKS["mls"], predictions, references, languages, per_language=True)
    assert averaged.average == {"wer": 0.5, "cer": 0.5}
    assert averaged.per_language == {"de": {"wer": 1.0, "cer": 1.0}, "pl": {"wer": 0.0, "cer": 0.0}}
    assert list(averaged.per_language) == ["de", "pl"]
    assert averaged.counts == {"de": 1, "pl": 3}
    pooled = score(TASKS["mls"], predictions, references, languages, per_language=False)
    assert pooled.average == {"wer": 0.25, "cer": 0.25}
    assert pooled.per_language == averaged.per_language


def test_each_task_is_scored_by_its_own_metrics():
    best = {"ctc": 0.0, "classification": 1.0, "translation": 100.0}
    for name, task in TASKS.items():
        if task.kind not in best:  # not scored by predictions beside references
            continue
        one = ["a b c d"] if task.predicts_text else [3]
        scores = score(task, one, one, ["xx"], per_language=True)
        assert tuple(scores.average) == task.metrics, name
        assert list(scores.average.values()) == [pytest.approx(best[task.kind])] * len(task.metrics)


def sentences_like(references, rng):
    """The references with a word left out here and there."""
    return [" ".join(word for word in text.split() if rng.random() < 0.8) for text in references]


WORDS = "the teacher sees a red bicycle near the river and buys fresh bread in the city".split()


def test_bleu_is_that_of_sacrebleu_and_of_the_xtreme_s_metric(rng):
    references = [" ".join(rng.choice(WORDS, rng.integers(4, 15))) + rng.choice(["", ".", ", it's"]) for _ in range(30)]
    predictions = sentences_like(references, rng)
    direct = sacrebleu.BLEU().corpus_score(predictions, [references]).score
    # As `evaluate`'s metric calls it.
    called = sacrebleu.corpus_bleu(
        predictions, [references], smooth_method="exp", smooth_value=None, force=False, lowercase=False,
        use_effective_order=False,
    ).score  # fmt: skip
    assert 1 < bleu(predictions, references) == direct == called < 99
    # Brevity penalty alone: every n-gram of the prediction is in the reference.
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat today again"]) == pytest.approx(
        100 * math.exp(1 - 8 / 6)
    )
    assert bleu(["The cat sat on the mat."], ["the cat sat on the mat."]) < 99, "case is not touched"


def test_bleu_by_direction_and_by_group(rng):
    languages = ["fr.en", "de.en", "zh-CN.en", "sv-SE.en", "xx.en", "en.de"]
    references = [" ".join(rng.choice(WORDS, 12)) for _ in range(6 * 8)]
    predictions = sentences_like(references, rng)
    of = [languages[row % 6] for row in range(6 * 8)]
    scores = score(TASKS["covost2"], predictions, references, of, per_language=True)
    alone = {
        name: sacrebleu.corpus_bleu(predictions[k::6], [references[k::6]]).score for k, name in enumerate(languages)
    }
    assert {name: values["bleu"] for name, values in scores.per_language.items()} == alone
    assert scores.average["bleu"] == pytest.approx(np.mean(list(alone.values())))
    assert scores.groups == pytest.approx(
        {
            "bleu_high": (alone["fr.en"] + alone["de.en"]) / 2,
            "bleu_mid": alone["zh-CN.en"],
            "bleu_low": alone["sv-SE.en"],
        }
    )
    assert scores.missing["bleu_high"] == ["es", "ca"] and scores.missing["bleu_mid"] == ["fa", "it", "ru", "pt"]
    assert len(scores.missing["bleu_low"]) == 11
    only = score(TASKS["covost2"], predictions[::6], references[::6], of[::6], per_language=True)
    assert list(only.groups) == ["bleu_high"] and list(only.missing) == ["bleu_high"]
    pooled = score(TASKS["covost2"], predictions, references, of, per_language=False)
    assert pooled.average["bleu"] == sacrebleu.corpus_bleu(predictions, [references]).score
    assert score(TASKS["mls"], ["a"], ["a"], ["fr"], per_language=True).groups == {}


def test_the_groups_are_all_of_covost2():
    codes = [code for codes in BLEU_GROUPS.values() for code in codes]
    assert [len(codes) for codes in BLEU_GROUPS.values()] == [4, 5, 12]
    assert sorted(codes) == sorted(name.split(".")[0].split("-")[0] for name in TASKS["covost2"].languages)


def test_every_clip_needs_a_language():
    with pytest.raises(ValueError, match="1 predictions were given for 2 references"):
        score(TASKS["mls"], ["a", "b"], ["a", "b"], ["pl"], per_language=True)


def test_evaluate_metric_returns_the_same_scores(monkeypatch, tmp_path, rng):
    from xtremes_jax.evaluation.xtreme_s import XtremeS

    words = np.array(["sun", "moon", "star"])
    predictions, references = ([" ".join(rng.choice(words, 4)) for _ in range(5)] for _ in range(2))
    metric = XtremeS(config_name="voxpopuli", cache_dir=str(tmp_path))
    assert metric.compute(predictions=predictions, references=references) == {
        "wer": word_error_rate(predictions, references),
        "cer": character_error_rate(predictions, references),
    }
    predictions, references = rng.integers(0, 3, 20), rng.integers(0, 3, 20)
    metric = XtremeS(config_name="minds14", cache_dir=str(tmp_path))
    assert metric.compute(predictions=predictions, references=references) == {
        "f1": macro_f1(predictions, references),
        "accuracy": accuracy(predictions, references),
    }
    texts = [" ".join(rng.choice(WORDS, 9)) for _ in range(20)]
    metric = XtremeS(config_name="covost2", cache_dir=str(tmp_path))
    assert metric.compute(predictions=texts[:10], references=texts[10:]) == {"bleu": bleu(texts[:10], texts[10:])}
    for name in ("fleurs", "fleurs-retrieval"):
        with pytest.raises(KeyError, match="fleurs-lang_id"):
            XtremeS(config_name=name, cache_dir=str(tmp_path))


def test_scores_are_finite_on_fresh_input(rng):
    letters = np.array(list("abc "))
    texts = ["".join(rng.choice(letters, rng.integers(0, 30))) for _ in range(40)]
    scores = score(TASKS["fleurs-asr"], texts[:20], texts[20:], ["aa", "bb"] * 10, per_language=True)
    assert all(math.isfinite(value) for value in scores.average.values())
