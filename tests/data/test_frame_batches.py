"""Batches made of stored frames: where all clips of one are there; of audio where not."""

import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from data.test_frames import CHANNELS, bits
from data.test_loader import ToySplit, arrays, take, toy, toys_travel  # noqa: F401 (a fixture)

from xtremes_jax.data.frames import FrameStore, Layout
from xtremes_jax.data.loader import TrainLoader
from xtremes_jax.errors import InputError


def frames_of(samples):
    return samples // 320


def filled(folder, split: ToySplit, clips, rng) -> tuple[FrameStore, dict[int, np.ndarray]]:
    """A store that holds some of a split's clips."""
    store = FrameStore(folder, Layout(frames_of(split.num_samples + 16), CHANNELS))
    values = {}
    for clip in clips:
        samples = int(split.num_samples[clip])
        values[clip] = bits(rng, frames_of(samples)) & 0x7F7F  # finite
        assert store.write(clip, values[clip], samples)
    return store, values


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_hold_frames_where_all_their_clips_are_stored(tmp_path, rng, toys_travel, num_workers):  # noqa: F811
    split = toy(19, bad=(4,))
    absent = {2, 4}
    store, values = filled(tmp_path / "name", split, set(range(19)) - absent, rng)
    loader = TrainLoader(split, batch_size=4, max_buckets=3, group_by_length=True, seed=5, num_workers=num_workers)
    stored = store.snapshot().for_edges({int(edge): int(frames_of(edge)) for edge in loader.edges})
    with loader.iterate(0, steps=loader.steps_per_epoch, stored=stored) as batches:
        found = list(batches)
    expected = take(loader, loader.steps_per_epoch)
    assert len(found) == len(expected) == 5
    kinds = set()
    for ours, plain, planned in zip(found, expected, loader.plan(0), strict=True):
        assert (ours.skipped, ours.audio_seconds, ours.clips) == (plain.skipped, plain.audio_seconds, plain.clips)
        for name in ("audio_lengths", "labels", "label_lengths", "weight", "sample_ids"):
            np.testing.assert_array_equal(getattr(ours.batch, name), getattr(plain.batch, name))
        kinds.add(ours.batch.frames is None)
        assert {type(array) for array in arrays(ours.batch)} == {np.ndarray}
        if absent & set(planned.indices.tolist()):
            assert ours.batch.frames is None
            np.testing.assert_array_equal(ours.batch.audio, plain.batch.audio)
            continue
        frames = ours.batch.frames
        assert ours.batch.audio is None and frames.dtype == jnp.bfloat16
        assert frames.shape == (4, frames_of(planned.bucket_samples), CHANNELS)
        for row, clip in enumerate(planned.indices):
            np.testing.assert_array_equal(frames[row, : len(values[clip])].view(np.uint16), values[clip])
            assert not frames[row, len(values[clip]) :].any()
        assert not frames[len(planned.indices) :].any()
    assert kinds == {True, False}
    store.close()


def test_a_batch_with_damaged_frames_is_read_as_audio(tmp_path, rng, caplog):
    split = toy(8)
    store, _ = filled(tmp_path / "name", split, range(8), rng)
    with open(tmp_path / "name" / "frames.bin", "r+b") as file:
        file.write(b"\xff" * 40)  # of the first clip
    loader = TrainLoader(split, batch_size=4, max_buckets=1, seed=5)
    stored = store.snapshot().for_edges({int(loader.edges[-1]): int(frames_of(loader.edges[-1]))})
    with loader.iterate(0, steps=2, stored=stored) as batches:
        found = list(batches)
    plain = take(loader, 2)
    for ours, theirs, planned in zip(found, plain, loader.plan(0), strict=True):
        assert (ours.batch.frames is None) == (0 in planned.indices)
        if 0 in planned.indices:
            np.testing.assert_array_equal(ours.batch.audio, theirs.batch.audio)
    assert "damaged" in caplog.text and store.count == 7
    store.close()


def test_a_store_that_is_removed_meanwhile_is_done_without(tmp_path, rng, caplog):
    split = toy(8)
    store, _ = filled(tmp_path / "name", split, range(8), rng)
    loader = TrainLoader(split, batch_size=4, max_buckets=1, seed=5)
    stored = store.snapshot().for_edges({int(loader.edges[-1]): int(frames_of(loader.edges[-1]))})
    shutil.rmtree(tmp_path / "name")
    with loader.iterate(0, steps=2, stored=stored) as batches:
        found = list(batches)
    for ours, theirs in zip(found, take(loader, 2), strict=True):
        np.testing.assert_array_equal(ours.batch.audio, theirs.batch.audio)
    assert "no longer be read" in caplog.text
    store.close()


def test_workers_are_given_room_for_frames(tmp_path, rng, monkeypatch):
    split = ToySplit(np.full(8, 480_000))
    store = FrameStore(tmp_path / "name", Layout(frames_of(split.num_samples), CHANNELS))
    stored = store.snapshot().for_edges({480_000: 200_000})  # much more than the audio
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    loader = TrainLoader(split, batch_size=8, num_workers=1)
    with pytest.raises(InputError, match=r"up to 110 MB are needed"):
        loader.iterate(0, stored=stored)
    store.close()
