"""The scores of XTREME-S, as the benchmark's metric in Hugging Face `evaluate` (`xtreme_s`) defines them.

Error rates are pooled over the clips they are given: the sum of edit errors over the sum of reference words or
characters. Text is taken as it is, apart from surrounding and repeated spaces.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xtremes_jax.tasks import TaskSpec

# jiwer and sacrebleu are imported where they are used: a run needs them long after its first step.


def word_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Word edits (substitutions, deletions, insertions) over the number of reference words, summed over all clips.

    May exceed 1. A clip whose reference is empty adds its predicted words as insertions and nothing to the number of
    words; if every reference is empty, the rate is the number of predicted words, as in jiwer 4.

    Raises:
        ValueError: no clips, or not one prediction for each reference.
    """
    return _error_rate(predictions, references, "ReduceToListOfListOfWords")


def character_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Like `word_error_rate`, over characters; spaces between words are characters too."""
    return _error_rate(predictions, references, "ReduceToListOfListOfChars")


def _error_rate(predictions: Sequence[str], references: Sequence[str], units: str) -> float:
    """Edits over reference units, which the jiwer transform of this name makes."""
    import jiwer

    _check_paired(predictions, references)
    # Runs of white space are squeezed and the ends stripped; characters then count the single spaces that are left.
    split = jiwer.Compose([jiwer.RemoveMultipleSpaces(), jiwer.Strip(), getattr(jiwer, units)()])
    counted = jiwer.process_words(
        list(references), list(predictions), reference_transform=split, hypothesis_transform=split
    )
    return float(counted.wer)


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Share of clips whose class (a number or a name) is the reference's.

    Raises:
        ValueError: no clips, or not one prediction for each reference.
    """
    _check_paired(predictions, references)
    return float(np.mean(np.asarray(predictions) == np.asarray(references)))


def macro_f1(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Unweighted mean of the F1 scores of all classes that occur in the predictions or the references.

    F1 is `2 TP / (2 TP + FP + FN)`; a class that is only predicted, or never found, has 0. Equal to scikit-learn's
    `f1_score(average="macro")`.

    Raises:
        ValueError: no clips, or not one prediction for each reference.
    """
    _check_paired(predictions, references)
    classes, ids = np.unique(np.concatenate([np.asarray(predictions), np.asarray(references)]), return_inverse=True)
    predicted, true = ids[: len(predictions)], ids[len(predictions) :]
    hits = np.bincount(true[predicted == true], minlength=len(classes))
    occurrences = np.bincount(ids, minlength=len(classes))  # 2 TP + FP + FN: each clip counts once on either side
    return float(np.mean(2 * hits / occurrences))


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus (Papineni et al. 2002), from 0 to 100: sacrebleu's `corpus_bleu` with its defaults.

    Those are the tokenizer "13a", case as it is, and exponential smoothing (Post 2018, arXiv:1804.08771).

    Raises:
        ValueError: no clips, or not one prediction for each reference.
    """
    _check_paired(predictions, references)
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(predictions), [list(references)]).score)


BLEU_GROUPS: dict[str, tuple[str, ...]] = {
    "high": tuple("fr de es ca".split()),
    "mid": tuple("fa it ru pt zh".split()),
    "low": tuple("tr ar et mn nl sv lv sl ta ja id cy".split()),
}
"""How much training data a language of CoVoST 2 has -> languages, as XLS-R (arXiv:2111.09296) and mSLAM
(arXiv:2202.01374) group them."""


def bleu_groups(per_language: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """The mean BLEU of each group of source languages, and which languages of those groups are missing.

    Args:
        per_language: direction into English (`fr.en`, `zh-CN.en`) -> metric -> score. Directions into other languages
            belong to no group; several from one language count as one, with their mean.

    Returns:
        `bleu_high`, `bleu_mid` and `bleu_low`, as far as any language of the group is there; and under the same names
        the languages of these groups that are not.
    """
    by_source: dict[str, list[float]] = {}
    for name, values in per_language.items():
        if name.endswith(".en"):
            by_source.setdefault(_source(name), []).append(values["bleu"])
    scores = {code: float(np.mean(values)) for code, values in by_source.items()}
    present = {group: [code for code in codes if code in scores] for group, codes in BLEU_GROUPS.items()}
    groups = {
        f"bleu_{group}": float(np.mean([scores[code] for code in codes])) for group, codes in present.items() if codes
    }
    missing = {
        f"bleu_{group}": [code for code in BLEU_GROUPS[group] if code not in scores]
        for group, codes in present.items()
        if codes
    }
    return groups, {name: codes for name, codes in missing.items() if codes}


def _source(direction: str) -> str:
    return re.split(r"[-_]", direction.partition(".")[0])[0].lower()


def _check_paired(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions were given for {len(references)} references.")
    if len(references) == 0:
        raise ValueError("There are no clips to score.")


METRICS: dict[str, Callable[[Sequence, Sequence], float]] = {
    "wer": word_error_rate,
    "cer": character_error_rate,
    "accuracy": accuracy,
    "f1": macro_f1,
    "bleu": bleu,
}
"""Metric by the name that `TaskSpec.metrics` and the result files use."""


@dataclass(frozen=True)
class Scores:
    """The scores of one split, as fractions (0.25 is 25%); BLEU alone goes from 0 to 100."""

    average: dict[str, float]
    """Metric -> score over the split: the mean of the languages' scores, or that of all clips together."""
    per_language: dict[str, dict[str, float]]
    """Language -> metric -> score, languages in alphabetical order; given in either case."""
    counts: dict[str, int]
    """Language -> number of clips."""
    groups: dict[str, float] = field(default_factory=dict)
    """Of translation: mean BLEU of the high, mid and low resource languages, as `bleu_high` and so on."""
    missing: dict[str, list[str]] = field(default_factory=dict)
    """Group in `groups` -> languages of it that the split does not hold, so that it is the mean of fewer."""


def score(
    task: TaskSpec,
    predictions: Sequence[Hashable],
    references: Sequence[Hashable],
    languages: Sequence[str],
    per_language: bool,
) -> Scores:
    """Scores a split by the task's metrics.

    Args:
        predictions: one a clip: text for recognition and translation, a class (number or name) for classification.
        references: likewise.
        languages: the language of each clip.
        per_language: average the languages' scores, each with the same weight; otherwise score all clips as one corpus.

    Raises:
        ValueError: no clips, or sequences of different lengths.
    """
    _check_paired(predictions, references)
    _check_paired(languages, references)
    rows: dict[str, list[int]] = {language: [] for language in sorted(set(languages))}
    for row, language in enumerate(languages):
        rows[language].append(row)
    by_language = {
        language: _apply(task, [predictions[row] for row in chosen], [references[row] for row in chosen])
        for language, chosen in rows.items()
    }
    if per_language:
        average = {
            metric: float(np.mean([scores[metric] for scores in by_language.values()])) for metric in task.metrics
        }
    else:
        average = _apply(task, predictions, references)
    groups, missing = bleu_groups(by_language) if "bleu" in task.metrics else ({}, {})
    return Scores(average, by_language, dict(sorted(Counter(languages).items())), groups, missing)


def _apply(task: TaskSpec, predictions: Sequence, references: Sequence) -> dict[str, float]:
    return {metric: METRICS[metric](predictions, references) for metric in task.metrics}
