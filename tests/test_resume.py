"""Runs that are stopped, started again, started afresh, or started from another run's checkpoint."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corpora import write_corpus
from runs import ROOT, flags, parameters, rows

from xtremes_jax import evaluate, train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_stopped_run_goes_on_as_if_it_had_not(corpus, tmp_path):
    noisy = dict(
        hidden_dropout=0.2,
        mask_time_prob=0.3,
        layerdrop=0.1,
        save_steps=2,
        num_train_epochs=1,
        max_steps=None,
        logging_steps=4,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main(flags(corpus, whole, "mls.all", **noisy)) == 0

    begun = subprocess.Popen(
        [sys.executable, "-m", "xtremes_jax.train", *flags(corpus, parts, "mls.all", **noisy)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = parts / "batches.jsonl"
    while begun.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.02)
    begun.send_signal(signal.SIGTERM)
    _, errors = begun.communicate(timeout=120)
    assert begun.returncode == 143, errors
    assert "Stopped by SIGTERM" in errors and "Traceback" not in errors
    stopped_at = rows(log)[-1]["step"]
    assert stopped_at < 6 and (parts / "checkpoints" / str(stopped_at)).is_dir()
    assert not (parts / "model.safetensors").exists()

    assert train.main(flags(corpus, parts, "mls.all", **noisy)) == 0
    assert [row["step"] for row in rows(log)] == [1, 2, 3, 4, 5, 6]
    assert rows(log) == rows(whole / "batches.jsonl")
    assert sorted(clip for row in rows(log) for clip in row["sample_ids"]) == list(range(24)), (
        "an epoch, each clip once"
    )
    lines = [
        [(row["step"], row["loss"], row["padding"]) for row in rows(folder / "metrics.jsonl")]
        for folder in (parts, whole)
    ]
    assert lines[0] == lines[1] and [step for step, *_ in lines[0]] == [4, 6]
    results = [json.loads((folder / "train_results.json").read_text()) for folder in (parts, whole)]
    assert results[0]["train_loss"] == results[1]["train_loss"]
    ours, expected = parameters(parts), parameters(whole)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_another_runs_checkpoint_and_a_fresh_start(corpus, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    settings = dict(do_eval=None, save_steps=1, max_steps=3)
    assert train.main(flags(corpus, first, "mls.all", **settings)) == 0
    losses = [row["loss"] for row in rows(first / "metrics.jsonl")]

    other = dict(settings, resume_from_checkpoint=first / "checkpoints" / "1")
    assert train.main(flags(corpus, second, "mls.all", **other)) == 0
    assert [row["step"] for row in rows(second / "metrics.jsonl")] == [2, 3]
    assert [row["loss"] for row in rows(second / "metrics.jsonl")] == losses[1:]
    for name, value in parameters(first).items():
        np.testing.assert_array_equal(parameters(second)[name], value, err_msg=name)

    # The same command, as a queue gives it: it goes on where it has come to, and not from the start once more.
    again = dict(other, max_steps=4)
    assert train.main(flags(corpus, second, "mls.all", **again)) == 0
    assert "goes on where it has come to" in capsys.readouterr().err
    assert [row["step"] for row in rows(second / "metrics.jsonl")] == [2, 3, 4]

    missing = dict(settings, resume_from_checkpoint=first / "checkpoints" / "9")
    assert train.main(flags(corpus, tmp_path / "third", "mls.all", **missing)) == 2
    assert "checkpoints/9: there is no checkpoint" in capsys.readouterr().err

    afresh = dict(settings, overwrite_output_dir=True, max_steps=2, seed=7)
    assert train.main(flags(corpus, second, "mls.all", **afresh)) == 0
    log = rows(second / "metrics.jsonl")
    assert [row["step"] for row in log] == [1, 2] and [row["loss"] for row in log] != losses[:2]
    assert sorted(path.name for path in (second / "checkpoints").iterdir()) == ["1", "2"]


def test_a_share_of_an_epoch(corpus, tmp_path):
    changes = dict(do_eval=None, save_strategy="no", max_steps=None, num_train_epochs=1.5)
    assert train.main(flags(corpus, tmp_path, "mls.all", **changes)) == 0
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["train_steps"] == 9 and results["epoch"] == pytest.approx(1.5)  # 24 clips, four at a time


def test_a_classifier_is_trained_and_scored_by_itself(corpus, tmp_path):
    trained, scored = tmp_path / "trained", tmp_path / "scored"
    changes = dict(do_predict=True, max_steps=3, save_strategy="no")
    assert train.main(flags(corpus, trained, "minds14.all", **changes)) == 0
    expected = json.loads((trained / "all_results.json").read_text())
    command = (
        f"--model_name_or_path {trained} --dataset_name {corpus} --task minds14 --predict_split_name test "
        f"--output_dir {scored} --per_device_eval_batch_size 3 --max_buckets 1 --disable_tqdm True"
    )
    assert evaluate.main(command.split()) == 0
    results = json.loads((scored / "results.json").read_text())
    assert results["f1"] == expected["predict_f1"] and results["accuracy"] == expected["predict_accuracy"]
    assert results["loss"] == pytest.approx(expected["predict_loss"], rel=1e-4)
    assert {row["reference"] for row in rows(scored / "predictions.jsonl")} <= set("abcd")
