"""Output directories: what a run that starts afresh removes, and what it leaves alone."""

import fcntl
import signal

import pytest

from xtremes_jax.run_directory import RunDirectory
from xtremes_jax.training.signals import Interrupted

RESULTS = (
    "run.json metrics.jsonl all_results.json eval_results.json predictions.jsonl eval_predictions.jsonl embeddings.npz "
    "eval_embeddings.npz model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json"
).split()


def test_a_fresh_start_leaves_nothing_of_the_run_before(tmp_path):
    for name in RESULTS:
        (tmp_path / name).write_text("old")
    for folder in ("checkpoints/5", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory(tmp_path, overwrite=True, training=True) as directory:
        directory.begin()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "overwrite, training, begun, checkpoint, way_on",
    [
        (False, True, True, True, "; the same command goes on from here"),
        (True, True, True, True, "; the same command without --overwrite_output_dir goes on from here"),
        # What lies there is another run's, or nothing: without the flag it would be gone on from, or refused.
        (True, True, False, True, "; the same command starts afresh"),
        (True, True, True, False, "; the same command starts afresh"),
        (False, False, False, True, ""),
    ],
)
def test_a_run_that_is_stopped_tells_what_to_do_with_what_it_leaves(
    tmp_path, overwrite, training, begun, checkpoint, way_on
):
    stopped = Interrupted(signal.SIGTERM)
    with pytest.raises(Interrupted), RunDirectory(tmp_path, overwrite=overwrite, training=training) as directory:
        if begun:
            directory.begin()
        if checkpoint:
            (tmp_path / "checkpoints" / "5").mkdir(parents=True)
        raise stopped
    assert stopped.way_on == way_on


def test_a_lock_that_is_removed_while_it_is_waited_for_is_made_anew(tmp_path, monkeypatch):
    flock, lock = fcntl.flock, tmp_path / ".lock"

    def as_another_run_ends(file, how):
        if file.fileno() not in locked:
            locked.append(file.fileno())
            lock.unlink()
        flock(file, how)

    locked = []
    monkeypatch.setattr(fcntl, "flock", as_another_run_ends)
    with RunDirectory(tmp_path, overwrite=True, training=True):
        assert lock.read_text(), "which a third run would find"


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    (tmp_path / ".export-x1y2").mkdir()
    (tmp_path / ".export-x1y2" / "model.safetensors").write_text("half")
    for name in (".results.json.4711", ".model.safetensors.4711.tmp", "notes.txt", ".hidden"):
        (tmp_path / name).write_text("")
    with RunDirectory(tmp_path, overwrite=True, training=True):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".lock", "notes.txt"]
