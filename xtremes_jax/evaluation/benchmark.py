"""The arithmetic of the benchmark: from the scores of finished runs to the XTREME-S table, its average and its gaps.

The average is that of the official leaderboard (Conneau et al. 2022, arXiv:2203.10752): recognition as 100 minus the
mean error rate and translation count 0.4 each, classification 0.2. Retrieval and BABEL do not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xtremes_jax.errors import InputError
from xtremes_jax.tasks import TASKS, XTREME_S, is_key_language

COUNTED: dict[str, str] = {
    "fleurs-asr": "cer",
    "mls": "wer",
    "voxpopuli": "wer",
    "covost2": "bleu",
    "fleurs-lang_id": "accuracy",
    "minds14": "accuracy",
}
"""Task whose score counts in the average -> the metric that counts, in the order of the leaderboard."""

OPTIONAL = ("babel", "fleurs-retrieval")
"""Tasks of the benchmark that are shown and do not count."""


@dataclass(frozen=True)
class Published:
    """Scores somebody published."""

    name: str
    scores: Mapping[str, Mapping[str, float]]
    """Task -> metric -> points (a word error rate of 9.9 is 9.9%)."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Task -> what its score is of, where that is not the whole task."""


def _row(name: str, *values: float) -> Published:
    return Published(
        name, {task: {metric: value} for (task, metric), value in zip(COUNTED.items(), values, strict=True)}
    )


PUBLISHED = (
    _row("w2v-bert-51", 14.1, 9.9, 9.3, 20.4, 71.4, 82.7),
    _row("mSLAM", 14.6, 10.1, 9.2, 20.6, 73.3, 86.9),
    Published(
        "XLS-R-300M",
        {
            "fleurs-asr": {"cer": 24.8}, "mls": {"wer": 30.33}, "voxpopuli": {"wer": 15.5},
            "fleurs-lang_id": {"accuracy": 72.7}, "minds14": {"accuracy": 94.70, "f1": 94.74},
        },
        {"fleurs-asr": "Western European languages only", "voxpopuli": "English only"},
    ),
)  # fmt: skip
"""The two rows of the leaderboard, and what the reference script reached with XLS-R-300M."""


def average(points: Mapping[str, float]) -> float:
    """The official average of the six tasks that count.

    Args:
        points: task -> its metric of `COUNTED` in points: error rates, accuracies and BLEU between 0 and 100 (error
            rates may exceed it).

    Raises:
        KeyError: a task is missing: there is no average of a part.
    """
    errors = [points[task] for task in ("fleurs-asr", "mls", "voxpopuli")]
    classes = [points[task] for task in ("fleurs-lang_id", "minds14")]
    return 0.4 * (100 - sum(errors) / 3) + 0.4 * points["covost2"] + 0.2 * sum(classes) / 2


def published_average(row: Published) -> float | None:
    """The average of a published row; None where a task is missing or was scored in part."""
    if row.notes or set(COUNTED) - set(row.scores):
        return None
    return average({task: row.scores[task][metric] for task, metric in COUNTED.items()})


def in_points(metric: str, value: float) -> float:
    """A score as the benchmark prints it: fractions times 100; BLEU is in points already."""
    return value if metric.startswith("bleu") else 100 * value


@dataclass(frozen=True)
class TaskRun:
    """What one finished run says about one task, on one split."""

    source: str
    """The directory, for messages."""
    task: str
    split: str
    """Name of the split, such as `test`."""
    metrics: Mapping[str, float]
    """Metric -> score over the split, in the units of `evaluation.metrics`."""
    per_language: Mapping[str, Mapping[str, float]]
    """Language -> metric -> score; empty where all clips were pooled."""
    limited: bool
    """Whether only the first so many clips of the split were scored."""
    unscored: int
    """Clips of the split that could not be read."""
    synthetic: bool
    dataset: str
    """What `--dataset_name` was."""
    target_column: str
    other_cleaning: bool = False
    """Text: whether other characters than the benchmark's were left out of references (`--chars_to_ignore`)."""
    key_language: str | None = None
    """Retrieval: language of the keys, in which no query is."""
    distractors: bool = False
    """Retrieval: whether the keys were looked for among more utterances than the split's."""


@dataclass(frozen=True)
class TaskScore:
    """One row of the table."""

    task: str
    metric: str
    """The metric that the benchmark reports."""
    points: Mapping[str, float]
    """Metric -> points; empty where no run is there."""
    per_language: Mapping[str, Mapping[str, float]]
    """Language -> metric -> points."""
    missing_languages: Sequence[str]
    marks: Sequence[str]
    """What keeps the score from being the benchmark's, in words; nothing for a score that is."""
    synthetic: bool
    sources: Sequence[str]

    @property
    def partial(self) -> bool:
        """Whether the score is of something other than the benchmark's whole test set."""
        return any(mark != SYNTHETIC for mark in self.marks)


SYNTHETIC = "synthetic speech"
_KEYS = "en_us"
"""Language of the benchmark's keys in retrieval."""


def gather(runs: Sequence[TaskRun]) -> list[TaskScore]:
    """One row for each task of the benchmark, in its order; tasks without a run have no points.

    Several runs of one task are joined when no two of them scored the same language (a model for each language, say):
    the score is then the mean over all of their languages.

    Raises:
        InputError: two runs scored one task on the same language.
    """
    order = [*COUNTED, *(task for task in OPTIONAL if task in TASKS)]
    by_task: dict[str, list[TaskRun]] = {task: [] for task in order}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    return [_joined(task, chosen) for task, chosen in by_task.items()]


def _joined(task: str, runs: Sequence[TaskRun]) -> TaskScore:
    metric = COUNTED.get(task, TASKS[task].metrics[0])
    if not runs:
        return TaskScore(task, metric, {}, {}, (), (), False, ())
    if len(runs) > 1:
        _check_disjoint(task, runs)
    scores = {name: dict(values) for run in runs for name, values in run.per_language.items()}
    metrics = runs[0].metrics if len(runs) == 1 else _means(scores)
    expected = _expected_languages(task, runs)
    missing = [name for name in expected if name not in scores] if scores else []
    marks = [SYNTHETIC] if any(run.synthetic for run in runs) else []
    marks += _marks_of_data(task, runs)
    if missing:
        marks.append(f"{len(expected) - len(missing)} of {len(expected)} languages")
    others = sorted(set(scores) - set(TASKS[task].languages))
    if others:
        marks.append(f"other languages: {', '.join(others)}")
    if not scores:
        marks.append("clips pooled over languages")
    unscored = sum(run.unscored for run in runs)
    if unscored:
        marks.append(f"{unscored} clips not scored")
    marks += [f"{name} split" for name in sorted({run.split for run in runs} - {"test"})]
    if any(run.limited for run in runs):
        marks.append("limited number of clips")
    return TaskScore(
        task, metric, _points(metrics), {name: _points(values) for name, values in sorted(scores.items())},
        missing, marks, any(run.synthetic for run in runs), [run.source for run in runs],
    )  # fmt: skip


def _expected_languages(task: str, runs: Sequence[TaskRun]) -> list[str]:
    """Languages of the task in which there are queries: those of the keys have none."""
    keys = {run.key_language for run in runs} - {None}
    return [name for name in TASKS[task].languages if not any(is_key_language(name, key) for key in keys)]


def _marks_of_data(task: str, runs: Sequence[TaskRun]) -> list[str]:
    """What was scored other than the benchmark's own data as it scores them. The synthetic corpus has its own mark."""
    marks = []
    if any(run.dataset != XTREME_S and not run.synthetic for run in runs):
        marks.append("other data")
    if any(run.target_column != TASKS[task].target_column for run in runs):
        marks.append("other target column")
    if any(run.other_cleaning for run in runs):
        marks.append("other --chars_to_ignore")
    other_keys = {run.key_language for run in runs} - {None}
    marks += [f"keys in {key}" for key in sorted(other_keys) if not is_key_language(_KEYS, key)]
    if any(run.distractors for run in runs):
        marks.append("among distractors")
    return marks


def _check_disjoint(task: str, runs: Sequence[TaskRun]) -> None:
    holders: dict[str, str] = {}
    for run in runs:
        # Without scores by language a run stands for all of them.
        for language in run.per_language or TASKS[task].languages:
            if language in holders:
                raise InputError(
                    f"{holders[language]} and {run.source} both score {task} on {language}. Name one of the two: runs "
                    "of one task are joined only where they scored different languages."
                )
            holders[language] = run.source


def _means(per_language: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The unweighted mean over languages of the metrics that all of them have."""
    common = set.intersection(*(set(values) for values in per_language.values()))
    return {
        metric: sum(values[metric] for values in per_language.values()) / len(per_language) for metric in sorted(common)
    }


def _points(values: Mapping[str, float]) -> dict[str, float]:
    return {metric: in_points(metric, value) for metric, value in values.items()}


def own_average(rows: Sequence[TaskScore]) -> float | None:
    """The official average of the rows; None while a task that counts is missing."""
    points = {row.task: row.points[row.metric] for row in rows if row.task in COUNTED and row.metric in row.points}
    return average(points) if len(points) == len(COUNTED) else None
