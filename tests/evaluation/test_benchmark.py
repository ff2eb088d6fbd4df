"""The table's arithmetic: the leaderboard's own rows, units, joined runs, gaps."""

import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.benchmark import (
    COUNTED,
    PUBLISHED,
    TaskRun,
    average,
    gather,
    in_points,
    own_average,
    published_average,
)
from xtremes_jax.tasks import TASKS


def run_of(task, metrics, languages=None, **changes) -> TaskRun:
    """A run over some languages (all of the task's), each with the same scores."""
    per_language = {name: metrics for name in (TASKS[task].languages if languages is None else languages)}
    values = {
        "source": f"out/{task}", "task": task, "split": "test", "metrics": metrics, "per_language": per_language,
        "limited": False, "unscored": 0, "synthetic": False, "dataset": "google/xtreme_s",
        "target_column": TASKS[task].target_column, **changes,
    }  # fmt: skip
    return TaskRun(**values)


def leaderboard(fleurs, mls, voxpopuli, covost2, lang_id, minds14, **changes) -> list[TaskRun]:
    """Runs that scored what the leaderboard says: error rates and accuracies as fractions, as runs write them."""
    return [
        run_of("fleurs-asr", {"cer": fleurs / 100, "wer": 0.5}, **changes),
        run_of("mls", {"wer": mls / 100, "cer": 0.03}, **changes),
        run_of("voxpopuli", {"wer": voxpopuli / 100, "cer": 0.04}, **changes),
        run_of("covost2", {"bleu": covost2}, **changes),
        run_of("fleurs-lang_id", {"accuracy": lang_id / 100}, **changes),
        run_of("minds14", {"f1": 0.123, "accuracy": minds14 / 100}, **changes),
    ]


ROWS = {"w2v-bert-51": (14.1, 9.9, 9.3, 20.4, 71.4, 82.7), "mSLAM": (14.6, 10.1, 9.2, 20.6, 73.3, 86.9)}
AVERAGES = {"w2v-bert-51": 59.1, "mSLAM": 59.7}


@pytest.mark.parametrize("name", ROWS)
def test_the_published_averages_come_out(name):
    assert round(average(dict(zip(COUNTED, ROWS[name], strict=True))), 1) == AVERAGES[name]
    (row,) = (row for row in PUBLISHED if row.name == name)
    assert round(published_average(row), 1) == AVERAGES[name]
    # From runs, whose rates are fractions and whose BLEU is not.
    rows = gather(leaderboard(*ROWS[name]))
    assert round(own_average(rows), 1) == AVERAGES[name]
    assert [row.points[row.metric] for row in rows[:6]] == pytest.approx(ROWS[name])
    assert not any(row.marks or row.partial for row in rows)


def test_the_average_by_hand():
    points = dict(zip(COUNTED, (30.0, 20.0, 10.0, 50.0, 60.0, 80.0), strict=True))
    assert average(points) == pytest.approx(0.4 * 80 + 0.4 * 50 + 0.2 * 70)
    with pytest.raises(KeyError):
        average({task: value for task, value in points.items() if task != "mls"})


def test_units():
    assert in_points("wer", 0.3033) == pytest.approx(30.33) and in_points("accuracy", 0.947) == pytest.approx(94.7)
    assert in_points("bleu", 20.4) == 20.4 and in_points("bleu_high", 30.0) == 30.0


def test_xls_r_has_no_average():
    assert published_average(PUBLISHED[-1]) is None


def test_what_is_missing_is_missing():
    runs = leaderboard(*ROWS["mSLAM"])
    for left_out in range(6):
        rows = gather(runs[:left_out] + runs[left_out + 1 :])
        assert [row.task for row in rows][:6] == list(COUNTED)
        assert [row.points == {} for row in rows[:6]] == [place == left_out for place in range(6)]
        assert own_average(rows) is None
    assert own_average(gather([])) is None
    babel = run_of("babel", {"wer": 0.5, "cer": 0.2})
    assert own_average(gather([*runs, babel])) == own_average(gather(runs)), "BABEL does not count"


def test_marks_say_what_a_score_is_not():
    def marks(**changes):
        changes = {"languages": TASKS["mls"].languages, **changes}
        (row,) = (row for row in gather([run_of("mls", {"wer": 0.2, "cer": 0.1}, **changes)]) if row.points)
        return row.marks, row.partial

    assert marks() == ([], False)
    assert marks(synthetic=True) == (["synthetic speech"], False)
    assert marks(languages=["nl", "pl"]) == (["2 of 8 languages"], True)
    assert marks(split="validation", limited=True) == (["validation split", "limited number of clips"], True)
    assert marks(languages=[]) == (["clips pooled over languages"], True)
    assert marks(unscored=3) == (["3 clips not scored"], True)
    assert marks(languages=[*TASKS["mls"].languages, "xx"]) == (["other languages: xx"], True)


def test_other_data_are_marked():
    def marks(task="mls", **changes):
        (row,) = (
            row for row in gather([run_of(task, dict.fromkeys(TASKS[task].metrics, 0.5), **changes)]) if row.points
        )
        return row.marks, row.partial

    assert marks(dataset="my/clips") == (["other data"], True)
    assert marks(target_column="raw_transcription") == (["other target column"], True)
    assert marks(other_cleaning=True) == (["other --chars_to_ignore"], True)
    assert marks(dataset="demo", synthetic=True) == (["synthetic speech"], False), "one mark is enough"
    assert marks("minds14", dataset="my/clips", target_column="mood") == (["other data", "other target column"], True)


def test_a_whole_run_of_retrieval_is_marked_by_nothing():
    languages = TASKS["fleurs-retrieval"].languages
    queries = [name for name in languages if name != "en_us"]

    def marks(names=queries, **changes):
        metrics = dict.fromkeys(TASKS["fleurs-retrieval"].metrics, 0.5)
        run = run_of("fleurs-retrieval", metrics, names, **{"key_language": "en", **changes})
        (row,) = (row for row in gather([run]) if row.points)
        return row.marks, list(row.missing_languages)

    assert marks() == ([], []) and marks(key_language="en_us") == ([], [])
    assert marks(queries[:-2]) == (["99 of 101 languages"], queries[-2:])
    assert marks(distractors=True) == (["among distractors"], [])
    french = [name for name in languages if name != "fr_fr"]
    assert marks(french, key_language="fr") == (["keys in fr"], [])


def test_runs_of_one_task_are_joined_if_their_languages_differ():
    one = run_of("mls", {"wer": 0.1, "cer": 0.05}, ["nl", "pl"], source="a")
    two = run_of("mls", {"wer": 0.4, "cer": 0.2}, ["fr"], source="b", synthetic=True)
    (row,) = (row for row in gather([one, two]) if row.points)
    assert row.points == pytest.approx({"wer": 20.0, "cer": 10.0}), "each language has the same weight"
    assert row.sources == ["a", "b"] and row.synthetic and row.marks == ["synthetic speech", "3 of 8 languages"]
    assert list(row.per_language) == ["fr", "nl", "pl"] and row.per_language["fr"]["wer"] == pytest.approx(40)
    with pytest.raises(InputError, match="a and c both score mls on pl. Name one of the two"):
        gather([one, two, run_of("mls", {"wer": 0.4, "cer": 0.2}, ["pl"], source="c")])
    with pytest.raises(InputError, match="a and d both score mls on nl"):
        gather([one, run_of("mls", {"wer": 0.4, "cer": 0.2}, [], source="d")])
