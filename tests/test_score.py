"""`python -m xtremes_jax.score`: what it prints of finished runs, and what it refuses to read."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from xtremes_jax import score
from xtremes_jax.arguments import DataArguments
from xtremes_jax.evaluation.benchmark import COUNTED
from xtremes_jax.run_record import FORMAT
from xtremes_jax.tasks import TASKS

MSLAM = dict(zip(COUNTED, (0.146, 0.101, 0.092, 20.6, 0.733, 0.869), strict=True))
"""Task -> what mSLAM scored, in the units that runs write."""


def record(task: str, value: float, languages=None, **changes) -> dict:
    """A run.json whose languages all have the same score; the metrics that do not count are 0.5."""
    metrics = {name: 0.5 for name in TASKS[task].metrics} | {COUNTED.get(task, "wer"): value}
    per_language = {name: metrics for name in (TASKS[task].languages if languages is None else languages)}
    scores = {"split": "test", "samples": 10, "unscored": 0, "limited_to": None, "metrics": metrics,
              "per_language": per_language, **changes}  # fmt: skip
    spec = TASKS[task]
    return {
        "format": FORMAT, "task": task, "synthetic": False, "dataset": "google/xtreme_s",
        "target_column": spec.target_column, "key_language": "en" if spec.kind == "retrieval" else None,
        "chars_to_ignore": list(DataArguments.chars_to_ignore) if spec.predicts_text else None, "distractors": None,
        "scores": {"predict": scores},
    }  # fmt: skip


def write(folder: Path, name: str, value) -> Path:
    (folder / name).mkdir()
    (folder / name / "run.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder / name


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """Six finished runs with mSLAM's scores."""
    return [str(write(tmp_path, task, record(task, value))) for task, value in MSLAM.items()]


def printed(capsys, *arguments) -> str:
    assert score.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> str:
    assert score.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    return captured.err


def test_the_table_has_the_published_row_and_its_average(runs, capsys):
    out = printed(capsys, *runs)
    lines = {line.split()[0]: line.split() for line in out.split("XTREME-S\n")[1].splitlines() if line}
    assert lines["task"] == ["task", "metric", "yours", "w2v-bert-51", "mSLAM", "XLS-R-300M", "remarks"]
    assert lines["fleurs-asr"] == ["fleurs-asr", "CER", "14.6", "14.1", "14.6", "24.8*"]
    assert lines["mls"] == ["mls", "WER", "10.1", "9.9", "10.1", "30.3"]
    assert lines["covost2"] == ["covost2", "BLEU", "20.6", "20.4", "20.6", "-"]
    assert lines["minds14"] == ["minds14", "accuracy", "86.9", "82.7", "86.9", "94.7"]
    assert lines["babel"][2:] == ["missing", "-", "-", "-", "no", "run;", "does", "not", "count"]
    assert lines["average"] == ["average", "59.7", "59.1", "59.7", "-"]
    assert out.endswith("\nXTREME-S average: 59.7\n") and "SYNTHETIC" not in out and "not comparable" not in out
    assert "minds14 by language\nlanguage  accuracy  macro-F1" in out
    groups = [line.split() for line in out.splitlines() if " resource " in line]
    assert groups == [["high", "resource", "20.6"], ["mid", "resource", "20.6"], ["low", "resource", "20.6"]]
    assert "XLS-R-300M, voxpopuli: English only" in out


def test_a_missing_task_is_shown_and_no_average_claimed(runs, capsys):
    out = printed(capsys, *runs[:2], *runs[4:])
    assert "No average: voxpopuli, covost2 are missing." in out and "XTREME-S average" not in out
    lines = {line.split()[0]: line.split() for line in out.split("XTREME-S\n")[1].splitlines() if line}
    assert lines["covost2"] == ["covost2", "BLEU", "missing", "20.4", "20.6", "-", "no", "run"]
    assert lines["average"] == ["average", "none", "59.1", "59.7", "-"]


def test_synthetic_and_partial_scores_are_marked(tmp_path, runs, capsys):
    made = record("mls", 0.101, languages=["nl", "pl"], limited_to=20) | {"synthetic": True}
    out = printed(capsys, *runs[:1], write(tmp_path, "demo", made), *runs[2:])
    assert "synthetic speech; 2 of 8 languages; limited number of clips" in out
    assert (
        "average: 59.7 (SYNTHETIC speech, not measured as the benchmark does: not comparable with the published rows)"
        in out
    )
    assert "not scored: 6 languages" in out
    few = record("covost2", 20.6, languages=["fr.en", "zh-CN.en"])
    out = printed(capsys, write(tmp_path, "few", few))
    assert "high resource (without de es ca)" in out and "low resource" not in out


def test_json_is_for_programs(tmp_path, runs, capsys):
    value = json.loads(printed(capsys, "--format", "json", *runs))
    assert round(value["average"], 1) == 59.7 and (value["synthetic"], value["partial"]) == (False, False)
    assert value["tasks"]["mls"]["score"] == pytest.approx(10.1) and value["tasks"]["mls"]["runs"] == [runs[1]]
    assert value["tasks"]["covost2"]["per_language"]["fr.en"] == {"bleu": 20.6}
    assert value["tasks"]["babel"] == {
        "metric": "wer", "counts": False, "missing": True, "score": None, "scores": {}, "per_language": {},
        "missing_languages": [], "marks": [], "runs": [],
    }  # fmt: skip
    assert [round(row["average"], 1) for row in value["published"][:2]] == [59.1, 59.7]
    assert value["published"][2]["average"] is None
    value = json.loads(printed(capsys, "--format", "json", runs[0]))
    assert value["average"] is None and value["tasks"]["mls"]["missing"]


def test_markdown_has_tables(runs, capsys):
    out = printed(capsys, "--format", "markdown", *runs)
    assert "| fleurs-asr | CER | 14.6 | 14.1 | 14.6 | 24.8\\* |  |" in out and "| average |  | 59.7 | 59.1 |" in out
    assert "## covost2 by language\n\n| language | BLEU |\n| --- | --- |" in out


def test_markdown_takes_names_for_names(tmp_path, capsys):
    made = record("mls", 0.1, languages=["<b>x|y", "[a](b)"])
    out = printed(capsys, "--format", "markdown", write(tmp_path, "run", made))
    assert "| \\<b>x\\|y | 10.0 | 50.0 |" in out and "| \\[a](b) | 10.0 | 50.0 |" in out


def test_the_same_directory_twice_is_one_run_and_another_of_the_task_is_refused(tmp_path, runs, capsys):
    assert printed(capsys, runs[0], runs[0]) == printed(capsys, runs[0])
    again = write(tmp_path, "again", record("mls", 0.2))
    assert f"{runs[1]} and {again} both score mls on nl. Name one of the two" in refused(capsys, *runs, again)


def test_the_evaluation_split_serves_where_nothing_else_was_scored(tmp_path, capsys):
    made = record("mls", 0.3)
    made["scores"] = {"eval": made["scores"]["predict"] | {"split": "validation"}}
    assert "30.0" in (out := printed(capsys, write(tmp_path, "run", made))) and "validation split" in out
    made["scores"] = {}
    assert "scored no split. Run it again with --do_predict" in refused(capsys, write(tmp_path, "none", made))


def test_a_directory_without_results_says_what_to_do(tmp_path, runs, capsys):
    assert "no such directory" in refused(capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no run.json, so no results. Give the --output_dir" in refused(capsys, tmp_path / "empty")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    assert "its run is not finished" in refused(capsys, tmp_path / "begun")
    assert f"holds runs and is none itself. Give them one by one: {tmp_path}/{{covost2,fleurs-asr" in refused(
        capsys, tmp_path
    )
    assert "format 7, this version reads 2" in refused(capsys, write(tmp_path, "new", {"format": 7}))


def hostile() -> list:
    """Damaged or hostile contents of a run.json."""
    values = ["", "[]", "null", "{", '"x"', "[" * 100_000, "1" * 10_000, '{"format": 2, "task": ["mls"]}']
    values += [{"format": 2, "task": "\x1b[31m"}, {"format": True, "task": "mls"}, b"\xff\xfe".decode("latin-1")]
    for path, value in [
        (("metrics",), []), (("metrics",), {}), (("metrics", "wer"), "0.1"), (("metrics", "wer"), True),
        (("metrics", "wer"), float("nan")), (("metrics", "wer"), float("inf")), (("metrics", "wer"), -0.1),
        (("metrics", "wer"), None), (("metrics", "\x1b]0;x\x07"), 0.1), (("metrics", "accuracy"), 1.5),
        (("metrics", "bleu"), 101), (("per_language",), []), (("per_language", "\u202e"), {"wer": 0.1, "cer": 0.1}),
        (("per_language", "n\nl"), {"wer": 0.1, "cer": 0.1}), (("per_language", "x" * 99), {"wer": 0.1, "cer": 0.1}),
        (("per_language", "nl"), {"wer": 0.1}), (("per_language", "nl"), 3), (("split",), "te\x00st"), (("split",), 5),
        (("unscored",), -1), (("unscored",), 0.5), (("limited_to",), "all"),
        (("metrics", "wer"), 1e308), (("metrics", "wer"), 10**400), (("metrics", "bleu"), -(10**400)),
        (("unscored",), 10**4000),
    ]:  # fmt: skip
        made = copy.deepcopy(record("mls", 0.1))
        place = made["scores"]["predict"]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        values.append(made)
    for changes in (
        {"dataset": None}, {"dataset": 3}, {"dataset": ""}, {"target_column": ["x"]}, {"target_column": None},
        {"key_language": "en"}, {"key_language": 5}, {"chars_to_ignore": None}, {"chars_to_ignore": ["a", 1]},
    ):  # fmt: skip
        values.append(record("mls", 0.1) | changes)
    values += [record("fleurs-retrieval", 0.1) | {"key_language": name} for name in (None, "\x1b[31m", 1)]
    return [*values, record("mls", 0.1) | {"synthetic": "no"}, record("mls", 0.1) | {"scores": {"predict": [1]}}]


def test_damaged_and_hostile_records_are_refused_in_a_sentence(tmp_path, capsys):
    for number, value in enumerate(hostile()):
        error = refused(capsys, write(tmp_path, f"run{number}", value))
        assert "\x1b" not in error and "Traceback" not in error and len(error) < 500, value
        assert "is damaged" in error or "has format" in error or "scored no split" in error, value
    huge = write(tmp_path, "huge", '{"format": 1, "x": "' + "y" * 5_000_000 + '"}')
    assert "larger than 4 MiB" in refused(capsys, huge)


def test_it_needs_neither_jax_nor_the_libraries_of_the_data(runs):
    code = (
        "import sys; from xtremes_jax import score; status = score.main(sys.argv[1:]); "
        "sys.exit(status or bool({'jax', 'datasets', 'transformers', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *runs], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0 and "XTREME-S average: 59.7" in done.stdout, done.stderr
