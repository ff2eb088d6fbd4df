"""The store of frames: what is written comes back bit for bit, and nothing else ever does."""

import errno
import fcntl
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.data import frames as frames_module
from xtremes_jax.data.frames import FrameStore, Layout
from xtremes_jax.errors import InputError

CHANNELS = 6
LAYOUT = Layout(np.array([3, 9, 0, 5, 7]), CHANNELS)


def bits(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 2**16, (count, CHANNELS)).astype(np.uint16)


@pytest.fixture
def store(tmp_path):
    store = FrameStore(tmp_path / "frames" / "name", LAYOUT)
    yield store
    store.close()


def test_what_is_written_comes_back_and_is_padded_to_the_batch(rng, store):
    first, second = bits(rng, 3), bits(rng, 6)
    assert store.write(0, first, 1_000) and store.write(3, bits(rng, 5), 1_700) and store.write(1, second, 2_000)
    assert store.write(2, bits(rng, 0), 5)  # shorter than a frame
    assert store.count == 4 and len(store) == 5
    stored = pickle.loads(pickle.dumps(store.snapshot().for_edges({2_400: 8, 1_600: 4})))
    assert stored.count == 4 and stored.holds(np.array([3, 1, 2])) and not stored.holds(np.array([0, 4]))
    frames, samples = stored.read(np.array([1, 2, 0]), 4, 2_400)
    assert frames.shape == (4, 8, CHANNELS) and samples.tolist() == [2_000, 5, 1_000] and samples.dtype == np.int32
    np.testing.assert_array_equal(frames[0, :6], second)
    np.testing.assert_array_equal(frames[2, :3], first)
    assert not frames[0, 6:].any() and not frames[1].any() and not frames[2, 3:].any() and not frames[3].any()
    frames, samples = stored.read(np.array([1]), 1, 1_600)  # a bucket a little shorter than the clip
    np.testing.assert_array_equal(frames[0], second[:4])
    assert samples.tolist() == [1_600] and stored.batch_bytes(3, 1_600) == 3 * 4 * CHANNELS * 2


def test_bfloat16_is_kept_as_it_is(rng, store):
    frames = np.array(jnp.asarray(rng.standard_normal((9, CHANNELS)), jnp.bfloat16))
    frames[4, 2] = np.inf
    assert store.write(1, frames, 3_000)
    found, _ = store.snapshot().for_edges({3_200: 9}).read(np.array([1]), 1, 3_200)
    np.testing.assert_array_equal(found[0].view(frames.dtype), frames)


def test_a_slot_is_written_once_and_never_beyond_its_end(rng, store):
    frames, later = bits(rng, 9), bits(rng, 9)
    assert store.write(1, frames, 3_000) and not store.write(1, later, 3_000)
    assert not store.write(0, bits(rng, 4), 1_300) and store.count == 1
    found, _ = store.snapshot().for_edges({3_200: 9}).read(np.array([1]), 1, 3_200)
    np.testing.assert_array_equal(found[0], frames)


def test_a_snapshot_does_not_change_and_a_store_stays(rng, store):
    store.write(0, bits(rng, 3), 1_000)
    before = store.snapshot()
    frames = bits(rng, 7)
    store.write(4, frames, 2_500)
    assert not before.holds(np.array([4])) and store.snapshot().holds(np.array([4]))
    store.close()
    again = FrameStore(store.folder, LAYOUT)
    assert again.count == 2 and again.others() == (0, 0)
    found, _ = again.snapshot().for_edges({3_200: 9}).read(np.array([4]), 1, 3_200)
    np.testing.assert_array_equal(found[0, :7], frames)
    again.close()
    afresh = FrameStore(store.folder, LAYOUT, afresh=True)
    assert afresh.count == 0
    other = FrameStore(store.folder.parent / "other", LAYOUT)
    other.write(0, bits(rng, 3), 1_000)
    count, held = afresh.others()
    assert count == 1 and held > 0
    afresh.close()
    other.close()


@pytest.mark.parametrize("damage", ["frames", "samples", "count", "too many"])
def test_damaged_frames_are_not_believed_and_can_be_written_again(rng, store, damage, caplog):
    frames = bits(rng, 6)
    for clip, count in ((1, 6), (3, 5)):
        store.write(clip, frames[:count], 2_000)
    data, index = store.folder / "frames.bin", store.folder / "index.bin"
    if damage == "frames":
        with open(data, "r+b") as file:
            file.seek(3 * CHANNELS * 2 + 17)
            file.write(b"\x00\xff")
    else:
        offset, value = {"samples": (0, 1_999), "count": (4, 5), "too many": (4, 2**32 - 1)}[damage]
        with open(index, "r+b") as file:
            file.seek(12 + offset)
            file.write(np.array(value, "<u4").tobytes())
    stored = store.snapshot().for_edges({3_200: 9})
    assert stored.read(np.array([3, 1]), 2, 3_200) is None
    assert "the frames of clip 1 are damaged" in caplog.text
    assert store.count == 1 and store.write(1, frames, 2_000)
    found, samples = store.snapshot().for_edges({3_200: 9}).read(np.array([3, 1]), 2, 3_200)
    np.testing.assert_array_equal(found[1, :6], frames)
    assert samples.tolist() == [2_000, 2_000]


def shorten(folder):
    with open(folder / "frames.bin", "r+b") as file:
        file.truncate(7)


def lengthen(folder):
    with open(folder / "index.bin", "ab") as file:
        file.write(b"more")


def lose(folder):
    (folder / "index.bin").unlink()


def link(folder):
    """To a file of the user's, of the right size."""
    target = folder.parent.parent / "precious"
    target.write_bytes((folder / "frames.bin").read_bytes())
    (folder / "frames.bin").unlink()
    (folder / "frames.bin").symlink_to(target)


@pytest.mark.parametrize("change", [shorten, lengthen, lose, link])
def test_a_store_that_is_not_what_was_written_is_made_anew(rng, store, change, caplog):
    frames = bits(rng, 9)
    store.write(1, frames, 3_000)
    store.close()
    change(store.folder)
    again = FrameStore(store.folder, LAYOUT)
    assert again.count == 0 and "is made anew" in caplog.text
    assert again.write(1, frames, 3_000) and not (store.folder / "frames.bin").is_symlink()
    again.close()


@contextmanager
def used_elsewhere(folder):
    """A second process that has the store open, and stores clip 0 in it."""
    code = """
import sys, numpy as np
from pathlib import Path
from xtremes_jax.data.frames import FrameStore, Layout
store = FrameStore(Path(sys.argv[1]), Layout(np.array([3, 9, 0, 5, 7]), 6))
print(store.write(0, np.full((3, 6), 7, np.uint16), 1_000), flush=True)
sys.stdin.read()
"""
    root = Path(__file__).resolve().parent.parent.parent
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "True\n"
            yield other
        finally:
            other.kill()


def test_a_store_that_another_process_uses_is_not_removed(tmp_path, rng):
    folder = tmp_path / "frames" / "name"
    with used_elsewhere(folder) as other:
        with pytest.raises(InputError, match=r"frames/name is to be made anew.* another run is using it.* drop --over"):
            FrameStore(folder, LAYOUT, afresh=True)
        shared = FrameStore(folder, LAYOUT)  # two may fill it
        assert shared.count == 1 and shared.write(1, bits(rng, 9), 3_000)
        shared.close()
        lengthen(folder)  # damage is no reason to take it away either
        with pytest.raises(InputError, match="another run is using it"):
            FrameStore(folder, LAYOUT)
        assert (folder / "frames.bin").stat().st_size == LAYOUT.total_bytes
        other.kill()  # a run that dies lets go of it
        other.wait()
        afresh = FrameStore(folder, LAYOUT, afresh=True)
        assert afresh.count == 0
        afresh.close()


def test_a_store_that_is_removed_while_it_is_opened_is_made_again(tmp_path, rng, store, monkeypatch):
    lock, removed = fcntl.flock, []

    def late(handle, operation):
        if operation == fcntl.LOCK_SH and not removed:
            removed.append(store.folder)
            shutil.rmtree(store.folder)
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    again = FrameStore(store.folder, LAYOUT)
    frames = bits(rng, 9)
    assert removed and again.write(1, frames, 3_000)
    found, _ = again.snapshot().for_edges({3_200: 9}).read(np.array([1]), 1, 3_200)
    np.testing.assert_array_equal(found[0], frames)
    again.close()


def test_of_two_that_remove_a_store_the_later_does_not_take_the_earlier_ones(tmp_path, rng, store, monkeypatch):
    """Both have opened the old one; when the later gets its lock, the earlier has made and opened a new one."""
    store.close()
    lock, earlier = fcntl.flock, []

    def late(handle, operation):
        if not earlier:
            earlier.append(None)
            earlier[0] = FrameStore(store.folder, LAYOUT, afresh=True)
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="another run is using it"):
        FrameStore(store.folder, LAYOUT, afresh=True)
    frames = bits(rng, 9)
    assert earlier[0].write(1, frames, 3_000)
    found, _ = earlier[0].snapshot().for_edges({3_200: 9}).read(np.array([1]), 1, 3_200)
    np.testing.assert_array_equal(found[0], frames)
    earlier[0].close()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def unknown(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    for afresh in (False, True):
        FrameStore(tmp_path / "name", LAYOUT, afresh=afresh).close()
    assert "knows no locks (No locks available)" in caplog.text


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    layout = Layout(np.full(2**16, 2**10), 512)  # 64 GiB
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 * 2**29))
    with pytest.raises(
        InputError, match=r"needs 64\.00 GiB more in .*, where 1\.50 GiB are free.*--frontend_cache_dir"
    ):
        FrameStore(tmp_path / "frames" / "name", layout)
    assert not list((tmp_path / "frames").iterdir())


def test_what_is_stored_needs_no_room_again(rng, tmp_path, monkeypatch):
    layout = Layout(np.array([2**13, 1]), CHANNELS)
    store = FrameStore(tmp_path / "name", layout)
    store.write(0, bits(rng, 2**13), 160_000)
    os.fsync(store._data)
    store.close()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**13))
    FrameStore(tmp_path / "name", layout).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file/frames.* cannot be written.*--frontend_cache_dir"):
        FrameStore(tmp_path / "file" / "frames" / "name", LAYOUT)


def test_a_folder_below_a_working_directory_that_is_gone_is_named_at_once(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match="nowhere/frames.* cannot be written"):
        FrameStore(Path("nowhere/frames/name"), LAYOUT)


def test_a_store_that_is_always_removed_is_given_up(tmp_path, monkeypatch):
    tried = []

    def vanish(folder, fill):
        tried.append(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(frames_module, "build_directory", vanish)
    with pytest.raises(InputError, match="other runs have removed it 100 times"):
        FrameStore(tmp_path / "frames" / "name", LAYOUT)
    assert len(tried) == 100


def test_a_store_is_removed_at_one_stroke(tmp_path, rng, store, monkeypatch):
    """Another run that looks while files are being deleted finds the new store or none, never half of the old one."""
    store.close()
    delete, seen = shutil.rmtree, []

    def slowly(folder, **options):
        seen.append(sorted(path.name for path in store.folder.parent.glob("*/*.bin")))
        delete(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    FrameStore(store.folder, LAYOUT, afresh=True).close()
    assert seen[0] == [] and [path.name for path in store.folder.parent.iterdir()] == [store.folder.name]


def test_a_full_disk_is_an_error_and_leaves_no_record(rng, store, monkeypatch):
    def full(handle, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        store.write(1, bits(rng, 9), 3_000)
    assert store.count == 0


def test_many_small_writes_make_up_a_large_one(rng, store, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: write(handle, data[:5], offset))
    frames = bits(rng, 9)
    store.write(1, frames, 3_000)
    found, _ = store.snapshot().for_edges({3_200: 9}).read(np.array([1]), 1, 3_200)
    np.testing.assert_array_equal(found[0], frames)
