"""Lines of a run that goes on, and files that cannot be written."""

import json
import os

import numpy as np
import pytest
from runs import rows

from xtremes_jax.errors import InputError
from xtremes_jax.evaluation.report import RunLog, write_arrays, write_json, write_jsonl


def opened(folder, **values):
    return RunLog(folder, tensorboard_dir=None, **{"resume_step": 0, **values})


@pytest.mark.parametrize("owed", [False, True])
def test_an_evaluation_that_is_made_again_has_one_line(tmp_path, owed):
    log = opened(tmp_path)
    for kind, step in (("train", 2), ("eval", 2), ("train", 4), ("eval", 4), ("train", 6)):
        log.write(kind, step, step / 4, {"loss": 1.0})
    for step in range(1, 7):
        log.write_batch(step, (step,))
    log.close()
    log = opened(tmp_path, resume_step=4, evaluation_owed=owed)
    log.close()
    kept = [("train", 2), ("eval", 2), ("train", 4), ("eval", 4)]
    assert [(row["kind"], row["step"]) for row in rows(log.path)] == (kept[:3] if owed else kept)
    assert [row["step"] for row in rows(tmp_path / "batches.jsonl")] == [1, 2, 3, 4]


def test_the_clips_of_steps_that_are_given_up_on_are_listed(tmp_path):
    log = opened(tmp_path)
    for step in range(1, 4):
        log.write_batch(step, (2 * step, 2 * step + 1))
    log.close()
    log = opened(tmp_path, resume_step=3)  # the streak began before a stop
    log.write_batch(4, (8, 9))
    assert rows(log.write_nonfinite(4, 3)) == [{"step": n, "sample_ids": [2 * n, 2 * n + 1]} for n in (2, 3, 4)]
    log.close()


def test_processes_that_do_not_write_leave_no_file(tmp_path):
    log = opened(tmp_path, writes=False)
    log.write("train", 1, 0.5, {"loss": 1.0})
    log.write_batch(1, (1,))
    log.sync()
    log.write_nonfinite(1, 1)
    log.close()
    assert not list(tmp_path.iterdir())


def test_a_torn_line_and_lines_of_a_run_that_begins_anew_go(tmp_path):
    path = tmp_path / "batches.jsonl"
    path.write_text('{"step": 1, "sample_ids": [3]}\n{"step": 2, "sam')
    opened(tmp_path, resume_step=2).close()
    assert rows(path) == [{"step": 1, "sample_ids": [3]}]
    opened(tmp_path).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("name", ["_file", "_batches"])
def test_a_full_disk_is_explained_and_no_checkpoint_outlives_the_lines(tmp_path, name):
    log = opened(tmp_path)
    getattr(log, name).close()
    setattr(log, name, open("/dev/full", "a", encoding="utf-8"))
    explained = "cannot be written: No space left on device. Make room"
    with pytest.raises(InputError, match=explained):
        log.write("train", 1, 0.5, {"loss": 1.0}) if name == "_file" else log.write_batch(1, (1,))
    with pytest.raises(InputError, match=explained):
        log.sync()
    log.close()  # it has been said


def test_whole_files_or_none(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"loss": float("nan"), "é": np.float32(0.5)})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"loss": None, "é": 0.5}
    write_arrays(tmp_path / "b.npz", {"x": np.arange(3)})
    np.testing.assert_array_equal(np.load(tmp_path / "b.npz")["x"], np.arange(3))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.json cannot be written: No space left on device"):
        write_json(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(InputError, match=r"c\.jsonl cannot be written"):
        write_jsonl(tmp_path / "c.jsonl", [{"x": 1}])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.npz"]
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["loss"] is None
