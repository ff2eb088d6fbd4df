"""Checkpoints through real Orbax directories."""

import collections
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.training import sealing
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.signals import Interrupted, StopRequest
from xtremes_jax.training.state import create_state


def make_state(rng, width=3):
    trainable = {"encoder.layers.kernel": jnp.asarray(rng.normal(size=(4, width)).astype(np.float32))}
    frozen = {"front": jnp.asarray(rng.normal(size=5).astype(np.float32))}
    return create_state(trainable, frozen, optax.adamw(1e-3), scale_loss=True)


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, rng):
    state = make_state(rng)._replace(step=jnp.asarray(7, jnp.int32))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.newest_sound() is None
    checkpoints.save(7, state, {"best_score": 0.5, "note": "é"})
    checkpoints.close()

    again = Checkpoints(tmp_path / "checkpoints")
    restored, progress = again.restore(again.newest_sound(), abstract(state))
    assert progress == {"best_score": 0.5, "note": "é"}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    again.close()


def test_a_checkpoint_is_complete_from_when_all_of_it_is_on_the_disk(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert not checkpoints.is_complete(1)
    for step in (1, 2):
        checkpoints.save(step, make_state(rng), {})
        checkpoints.wait()
        assert checkpoints.is_complete(step)
    with pytest.raises(FileNotFoundError, match=r"of step 1 has been removed \(--save_total_limit\)"):
        checkpoints.is_complete(1)
    assert not checkpoints.is_complete(3)
    checkpoints.close()


@pytest.mark.parametrize(
    "limit, best, kept", [(1, None, [50]), (1, 20, [20, 50]), (2, 50, [40, 50]), (3, 10, [10, 40, 50])]
)
def test_limit_keeps_the_best_the_newest_and_as_many_as_it_says(tmp_path, rng, limit, best, kept):
    state = make_state(rng)
    checkpoints = Checkpoints(tmp_path, keep=limit, best=lambda: best)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(step, state, {})
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.steps() == kept
    again.close()


def test_going_back_removes_what_came_after(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(rng), {})
    checkpoints.wait()
    checkpoints.delete_after(1)
    assert checkpoints.steps() == [1]
    checkpoints.close()


def test_a_checkpoint_is_found_by_its_run_or_by_its_own_path(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, make_state(rng), {})
    checkpoints.close()
    for path, expected in (("run", 2), ("run/checkpoints", 2), ("run/checkpoints/1", 1)):
        found, step = Checkpoints.at(tmp_path / path)
        assert step == expected and found.steps() == [1, 2]
        found.close()
    for path in ("nowhere", "run/checkpoints/7"):
        with pytest.raises(InputError, match="resume_from_checkpoint"):
            Checkpoints.at(tmp_path / path)


def test_other_shapes_and_missing_steps_are_named(tmp_path, rng):
    state = make_state(rng)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    with pytest.raises(InputError, match=r"no checkpoint of step 2.*\[1\]"):
        checkpoints.restore(2, abstract(state))
    with pytest.raises(
        InputError, match=r"does not fit.*encoder.layers.kernel has shape \(4, 3\) there and \(4, 6\) here"
    ):
        checkpoints.restore(1, abstract(make_state(rng, width=6)))
    checkpoints.close()


def damaged(folder, kind, rng):
    """Changes one file below a folder: a bit, its length, or that it is there; says which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[rng.integers(len(files))]
    data = bytearray(file.read_bytes())
    if kind == "flipped":
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
    elif kind == "cut":
        file.write_bytes(data[: rng.integers(len(data))])
    elif kind == "missing":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
    return kind, str(file.relative_to(folder))


def test_200_damaged_checkpoints_are_detected_or_harmless(tmp_path, rng, caplog):
    """The newest of two is damaged: the one before it is used, or what is read is what was written."""
    states, sound = {2: make_state(rng), 3: make_state(rng)}, tmp_path / "sound"
    checkpoints = Checkpoints(sound)
    for step, state in states.items():
        checkpoints.save(step, state, {"step": step})
    checkpoints.close()

    found = collections.Counter()
    for turn in range(200):
        copy = tmp_path / str(turn)
        shutil.copytree(sound, copy)
        kind = ("flipped", "cut", "missing", "folder missing")[turn % 4]
        case = damaged(copy / "3", kind, rng)
        found["gone"] += not (copy / "3").exists()
        checkpoints = Checkpoints(copy)
        step = checkpoints.newest_sound()
        restored, progress = checkpoints.restore(step, abstract(states[2]))
        for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(states[step]), strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=str(case))
        assert progress == {"step": step}, case
        if step == 2:  # the run goes on, and makes the other one again
            checkpoints.delete_after(2)
            checkpoints.save(3, states[3], {})
            checkpoints.wait()
            assert checkpoints.damage(3) is None, case
        found[step] += 1
        checkpoints.close()
        shutil.rmtree(copy)
    assert found[2] > 120 and caplog.text.count("is damaged") == found[2] - found["gone"]


def test_if_all_are_damaged_nothing_is_begun_anew(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, make_state(rng), {})
    checkpoints.close()
    (tmp_path / "4" / "progress" / "metadata").write_text("{} ")
    with pytest.raises(InputError, match=r"Every checkpoint in .* step 4: progress/metadata has 3 bytes in place of 2"):
        Checkpoints(tmp_path).newest_sound()
    with pytest.raises(InputError, match=r"--resume_from_checkpoint .*4 is damaged: progress/metadata has 3 bytes"):
        Checkpoints.at(tmp_path / "4")


def test_a_link_in_a_checkpoint_is_not_followed(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(4, make_state(rng), {})
    checkpoints.close()
    metadata = tmp_path / "run" / "4" / "progress" / "metadata"
    metadata.rename(tmp_path / "elsewhere")
    metadata.symlink_to(tmp_path / "elsewhere")
    assert "metadata is a link" in checkpoints.damage(4)


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from test_checkpoint import make_state
    from xtremes_jax.errors import InputError
    from xtremes_jax.training.checkpoint import Checkpoints

    rng = np.random.default_rng(0)
    checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
    checkpoints.save(1, make_state(rng), {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # of each file, as a full disk would
    try:
        checkpoints.save(2, make_state(rng, width=30_000), {})
        checkpoints.close()
    except InputError as error:
        print(error)
"""


def test_a_full_disk_is_named_and_the_last_good_checkpoint_stays(tmp_path, rng):
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert f"A checkpoint could not be written to {tmp_path}" in done.stdout and "File too large" in done.stdout
    assert "The last complete checkpoint is that of step 1." in done.stdout

    again = Checkpoints(tmp_path)
    assert again.newest_sound() == 1
    again.save(2, make_state(rng), {})
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]  # nothing is left of the failed one


def test_a_signal_while_a_checkpoint_is_waited_for_is_no_failure_to_write_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with StopRequest(), pytest.raises(Interrupted):
        checkpoints.wait()


def test_a_failure_without_words_and_a_directory_that_is_gone_are_explained(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run")

    def fail():
        shutil.rmtree(tmp_path / "run")
        raise TimeoutError

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
    with pytest.raises(InputError, match=r"could not be written to .*run: TimeoutError There is no checkpoint\."):
        checkpoints.wait()


def test_a_file_that_the_disk_cannot_read_is_damage(tmp_path, rng, monkeypatch, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(rng), {})
    checkpoints.wait()
    digest = sealing._digest

    def broken_disk(path):
        if "/2/state/" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return digest(path)

    monkeypatch.setattr(sealing, "_digest", broken_disk)
    assert checkpoints.newest_sound() == 1
    assert re.search(r"2 is damaged: state/\S+ cannot be read \(Input/output error\)", caplog.text)
    checkpoints.close()


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path, rng, monkeypatch):
    """Each of its files, and the folders that they are in."""
    synced, sync = set(), sealing._sync
    monkeypatch.setattr(sealing, "_sync", lambda path: (sync(path), synced.add(os.stat(path).st_ino)))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, make_state(rng), {"a": 1})
    checkpoints.close()
    for item in ("state", "progress"):
        paths = [tmp_path / "7" / item, *(tmp_path / "7" / item).rglob("*")]
        missed = {path.name for path in paths if path.stat().st_ino not in synced}
        assert missed <= {"commit_success.txt"}  # Orbax's mark, which comes last


@pytest.mark.parametrize("path", ["s3://bucket/run", "ftp://host/run"])
def test_buckets_of_others_are_refused(path):
    with pytest.raises(InputError, match=r"those of Google Cloud Storage can be used \(gs://BUCKET/FOLDER\)"):
        Checkpoints(path)


def test_a_bucket_needs_its_client(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="install gcsfs"):
        Checkpoints("gs://bucket/run")
