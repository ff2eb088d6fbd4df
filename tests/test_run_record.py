"""`run.json` as it is written and read again: what it says of the data, and which earlier scores it keeps."""

import json
from types import SimpleNamespace

import pytest

from xtremes_jax.arguments import parse_evaluate_arguments
from xtremes_jax.evaluation.metrics import Scores
from xtremes_jax.evaluation.predict import ScoredSplit
from xtremes_jax.run_record import read_run, write_record


def write(folder, *, role="predict", score=0.25, unscored=0, **flags) -> dict:
    """Writes the record of a scored run with these flags; returns what is in the file."""
    values = {"model_name_or_path": "run/a", "task": "mls", "output_dir": folder, **flags}
    words = [word for name, value in values.items() for word in (f"--{name}", *str(value).split(" "))]
    arguments = parse_evaluate_arguments(words)
    metrics = dict.fromkeys(arguments.selection.task.metrics, score)
    scored = ScoredSplit({"samples": 3}, [], Scores(metrics, {"de": metrics}, {"de": 3}), unscored=unscored)
    split = SimpleNamespace(name="test", raw=SimpleNamespace(clip_names=list("abcd")))
    write_record(folder, arguments, SimpleNamespace(splits={role: split}, synthetic=False), {role: scored})
    return json.loads((folder / "run.json").read_text())


def test_data_are_read_as_they_were_written(tmp_path):
    write(tmp_path, unscored=1)
    run = read_run(tmp_path)
    assert (run.dataset, run.target_column, run.key_language) == ("google/xtreme_s", "transcription", None)
    assert (run.other_cleaning, run.distractors, run.unscored) == (False, False, 1)
    write(tmp_path, dataset_name="my/clips", target_column_name="said", chars_to_ignore="# +")
    run = read_run(tmp_path)
    assert (run.dataset, run.target_column, run.other_cleaning) == ("my/clips", "said", True)
    more = dict(distractor_dataset_name="my/more", distractor_dataset_config_name="mls.en", key_language="de")
    record = write(tmp_path, task="fleurs-retrieval", **more)
    assert record["distractors"] == {
        "dataset_name": "my/more", "dataset_config_name": "mls.en", "split_name": None,
    }  # fmt: skip
    run = read_run(tmp_path)
    assert (run.key_language, run.distractors, run.other_cleaning, run.unscored) == ("de", True, False, 0)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({}, {}, True),
        ({}, {"model_name_or_path": "run/b"}, False),
        ({"language": "pl"}, {"language": "de"}, False),
        ({"task": "fleurs-asr", "language_group": "south_asian_sa"}, {"task": "fleurs-asr"}, False),
        ({"chars_to_ignore": "#"}, {}, False),
        ({}, {"dataset_name": "my/clips"}, False),
        ({"target_lang": "fra"}, {"target_lang": "fra"}, True),
        ({"target_lang": "fra"}, {"target_lang": "eng"}, False),
    ],
)
def test_scores_of_another_model_or_of_other_data_are_not_kept(tmp_path, first, second, kept):
    write(tmp_path, role="eval", **first)
    assert set(write(tmp_path, **second)["scores"]) == ({"eval", "predict"} if kept else {"predict"})


@pytest.mark.parametrize("scores", [None, [1], "x", 3])
def test_an_earlier_record_without_scores_is_replaced(tmp_path, scores):
    record = write(tmp_path, role="eval")
    (tmp_path / "run.json").write_text(json.dumps(record | {"scores": scores}))
    assert set(write(tmp_path)["scores"]) == {"predict"}
