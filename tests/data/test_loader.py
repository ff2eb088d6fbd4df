"""The loader over a stand-in split: exact position, exact rows, no silent skips, no process left behind."""

import itertools
import json
import multiprocessing
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtremes_jax.batch import Batch
from xtremes_jax.data.loader import EvalLoader, TrainLoader
from xtremes_jax.errors import InputError

REPOSITORY = Path(__file__).parents[2]


@dataclass
class ToySplit:
    """What the loader asks of a PreparedSplit, with noise made on the spot for audio."""

    num_samples: np.ndarray
    bad: tuple[int, ...] = ()
    too_long: dict[int, int] = field(default_factory=dict)
    """Clip -> samples by which it decodes longer than its header said."""
    float_clips: tuple[int, ...] = ()
    is_float: bool = False
    name: str = "train"

    def __post_init__(self):
        count = len(self.num_samples)
        self.rows = 1_000 + np.arange(count)
        self.labels = [np.arange(1, 2 + i % 11, dtype=np.int32) for i in range(count)]
        self.has_loss = np.ones(count, bool)
        self.clip_names = [f"clip-{i}.wav" for i in range(count)]

    def for_workers(self) -> "ToySplit":
        return self

    def read_audio(self, clip: int) -> np.ndarray:
        if clip in self.bad:
            raise InputError("not audio")
        length = self.num_samples[clip] + self.too_long.get(clip, 0)
        audio = np.random.default_rng(clip).integers(-(2**15), 2**15, length).astype(np.int16)
        return audio / np.float32(2**15) if clip in self.float_clips else audio


def toy(count: int = 23, seed: int = 0, **options) -> ToySplit:
    lengths = np.random.default_rng(seed).lognormal(7, 0.8, count).astype(np.int64) + 400
    return ToySplit(lengths, **options)


@pytest.fixture
def toys_travel():
    """Workers cannot import this file, so the stand-in is sent to them with its code."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def take(loader: TrainLoader, count: int, start: int = 0) -> list:
    with loader.iterate(start) as batches:
        return list(itertools.islice(batches, count))


def arrays(batch: Batch) -> list:
    """All that is there: `frames` is not where `audio` is."""
    return [array for array in batch if array is not None]


def assert_same(one, two) -> None:
    assert (one.global_step, one.epoch, one.skipped) == (two.global_step, two.epoch, two.skipped)
    for left, right in zip(arrays(one.batch), arrays(two.batch), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def assert_rows_are_their_clips(split: ToySplit, batch: Batch) -> None:
    for row, sample_id in enumerate(batch.sample_ids):
        clip = sample_id - 1_000
        audio = split.read_audio(clip) if sample_id >= 0 else np.zeros(0, np.int16)
        labels = split.labels[clip] if sample_id >= 0 else np.zeros(0, np.int32)
        assert batch.weight[row] == (sample_id >= 0)
        assert batch.audio_lengths[row] == len(audio) and batch.label_lengths[row] == len(labels)
        np.testing.assert_array_equal(batch.audio[row, : len(audio)], audio)
        np.testing.assert_array_equal(batch.labels[row, : len(labels)], labels)
        assert not batch.audio[row, len(audio) :].any() and not batch.labels[row, len(labels) :].any()


def test_batches_hold_the_clips_of_the_plan_and_every_clip_once_an_epoch():
    split = toy()
    loader = TrainLoader(split, batch_size=4, multiple=2, max_buckets=3, group_by_length=True, seed=3)
    assert loader.steps_per_epoch == 6
    seen = {0: [], 1: []}
    for loaded in take(loader, 12):
        epoch, index = divmod(loaded.global_step, loader.steps_per_epoch)
        planned = loader.plan(epoch)[index]
        assert loaded.epoch == epoch and loaded.skipped == ()
        assert loaded.batch.audio.shape == (4, planned.bucket_samples) and loaded.batch.audio.dtype == np.int16
        assert [a.dtype for a in arrays(loaded.batch)[1:]] == [np.int32, np.int32, np.int32, np.float32, np.int32]
        assert_rows_are_their_clips(split, loaded.batch)
        ids = loaded.batch.sample_ids[loaded.batch.sample_ids >= 0]
        np.testing.assert_array_equal(ids, planned.indices + 1_000)
        seen[epoch] += ids.tolist()
        assert loaded.audio_seconds == pytest.approx(split.num_samples[planned.indices].sum() / 16_000)
        assert loaded.padded_seconds == pytest.approx(4 * planned.bucket_samples / 16_000)
        assert loaded.data_wait_s >= 0
    for ids in seen.values():
        assert sorted(ids) == list(range(1_000, 1_023))
    assert seen[0] != seen[1]


@given(
    st.integers(1, 40),
    st.integers(0, 30),
    st.booleans(),
    st.sampled_from([{"batch_size": 3}, {"max_batch_samples": 9_000}]),
)
@settings(deadline=None, max_examples=20)
def test_a_run_resumed_at_any_step_sees_the_same_batches(clips, start, grouped, size):
    split = toy(clips, seed=clips)
    straight = take(TrainLoader(split, seed=1, group_by_length=grouped, max_buckets=4, **size), start + 3)
    resumed = take(TrainLoader(split, seed=1, group_by_length=grouped, max_buckets=4, **size), 3, start)
    for one, two in zip(straight[start:], resumed, strict=True):
        assert_same(one, two)


def test_no_more_shapes_than_buckets_over_many_epochs():
    split = toy(60)
    loader = TrainLoader(split, batch_size=4, max_buckets=5, seed=2)
    shapes = {tuple(a.shape for a in arrays(loaded.batch)) for loaded in take(loader, 10 * loader.steps_per_epoch)}
    assert 1 < len(shapes) <= 5


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"max_batch_samples": 40_000}])
def test_rows_of_all_processes_make_up_the_batch_of_one(size):
    split = toy(21, bad=(3, 11))
    options = {"multiple": 4, "max_buckets": 3, "seed": 9, **size}
    whole = take(TrainLoader(split, **options), 5)
    parts = [take(TrainLoader(split, process_index=p, process_count=4, **options), 5) for p in range(4)]
    for step, loaded in enumerate(whole):
        assert loaded.batch.frames is None
        for name in Batch._fields[:-1]:
            joined = np.concatenate([getattr(part[step].batch, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(loaded.batch, name))
        assert sum((part[step].skipped for part in parts), ()) == loaded.skipped
        assert {part[step].padded_seconds for part in parts} == {loaded.padded_seconds}
    assert sum(len(loaded.skipped) for loaded in whole) >= 2


def test_bad_clips_become_reported_filler_rows_on_any_number_of_workers(toys_travel):
    split = toy(14, bad=(5, 6), too_long={2: 100_000})
    options = {"batch_size": 4, "max_buckets": 2, "seed": 4}
    here = take(TrainLoader(split, **options), 8)
    there = take(TrainLoader(split, num_workers=2, **options), 8)
    for one, two in zip(here, there, strict=True):
        assert_same(one, two)
        assert {type(array) for array in arrays(two.batch)} == {np.ndarray}, "copied out of the workers' shared memory"
    first_epoch = [clip for loaded in here[:4] for clip in loaded.skipped]
    assert sorted(clip.sample_id for clip in first_epoch) == [1_002, 1_005, 1_006]
    assert {(c.split, c.clip, c.reason) for c in first_epoch} >= {("train", "clip-5.wav", "not audio")}
    assert "the file changed" in next(c.reason for c in first_epoch if c.sample_id == 1_002)
    kept = np.concatenate([loaded.batch.sample_ids for loaded in here[:4]])
    assert len(kept) == 16
    np.testing.assert_array_equal(np.sort(kept[kept >= 0]), np.delete(np.arange(1_000, 1_014), [2, 5, 6]))
    assert not multiprocessing.active_children()


def test_a_sample_more_from_the_resampler_is_cut_off():
    split = ToySplit(np.array([3_200, 1_000]), too_long={0: 1})
    batch = next(iter(EvalLoader(split, batch_size=2))).batch
    np.testing.assert_array_equal(batch.audio_lengths, [3_200, 1_000])
    np.testing.assert_array_equal(batch.audio[0], split.read_audio(0)[:3_200])


def test_an_error_that_is_no_bad_clip_stops_the_run():
    split = toy(6)
    split.clip_names = None  # the report of a bad clip fails: a fault of the program
    split.bad = (0, 1, 2, 3, 4, 5)
    with pytest.raises(TypeError):
        take(TrainLoader(split, batch_size=2), 1)


@pytest.mark.parametrize("is_float", [False, True])
def test_one_sample_type_for_the_whole_split(is_float):
    split = toy(6, float_clips=(1, 4), is_float=is_float)
    for loaded in EvalLoader(split, batch_size=2):
        batch = loaded.batch
        assert batch.audio.dtype == (np.float32 if is_float else np.int16)
        for row, clip in enumerate(batch.sample_ids - 1_000):
            audio = split.read_audio(clip)
            pcm = audio if audio.dtype == np.int16 else np.round(audio * 2**15)
            scale = 2**15 if is_float else 1
            np.testing.assert_array_equal(batch.audio[row, : len(audio)], pcm.astype(np.float32) / scale)


def test_float_audio_louder_than_full_scale_is_clipped():
    split = ToySplit(np.array([4]))
    split.read_audio = lambda clip: np.array([1.5, -2.0, 1.0, 2.4 / 2**15], np.float32)
    audio = next(iter(EvalLoader(split, batch_size=1))).batch.audio
    np.testing.assert_array_equal(audio[0, :4], [32767, -32768, 32767, 2])


def test_evaluation_sees_each_clip_once_longest_first_and_ends():
    split = toy(11)
    loader = EvalLoader(split, batch_size=4, max_buckets=2)
    for _ in range(2):  # and can be repeated
        loaded = list(loader)
        assert len(loaded) == len(loader) == 3
        ids = np.concatenate([item.batch.sample_ids for item in loaded])
        assert ids[-1] == -1 and sorted(ids[:-1]) == list(range(1_000, 1_011))
        lengths = np.concatenate([item.batch.audio_lengths for item in loaded])
        assert np.all(np.diff(lengths) <= 0)


def test_classification_has_one_label_column():
    split = toy(5)
    split.labels = [np.array([i], np.int32) for i in range(5)]
    batch = next(iter(EvalLoader(split, batch_size=5))).batch
    assert batch.labels.shape == (5, 1)
    np.testing.assert_array_equal(batch.labels[:, 0], batch.sample_ids - 1_000)


def test_a_clip_without_loss_keeps_its_id_but_has_no_weight():
    split = toy(3)
    split.has_loss[1] = False
    batch = next(iter(EvalLoader(split, batch_size=4))).batch
    weights = dict(zip(batch.sample_ids.tolist(), batch.weight.tolist(), strict=True))
    assert weights == {1_000: 1, 1_001: 0, 1_002: 1, -1: 0}


def test_workers_are_refused_where_shared_memory_cannot_hold_their_batches(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    loader = TrainLoader(ToySplit(np.full(8, 480_000)), batch_size=8, num_workers=2)
    with pytest.raises(InputError, match="/dev/shm, which has 64 MB free where up to 88 MB.*num_workers 0"):
        loader.iterate()


def test_a_sharding_puts_whole_batches_on_all_devices():
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    split = toy(5 * devices)
    options = {"batch_size": 2 * devices, "multiple": devices, "max_buckets": 2}
    hosts = take(TrainLoader(split, **options), 4)
    for host, put in zip(hosts, take(TrainLoader(split, sharding=sharding, **options), 4), strict=True):
        assert all(isinstance(a, jax.Array) and a.sharding == sharding for a in arrays(put.batch))
        assert_same(host, put)


@pytest.mark.parametrize("grouped", [True, False])
def test_shapes_are_told_before_the_batches_come(grouped):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for size in ({"batch_size": 4}, {"max_batch_samples": 20_000}):
        loader = TrainLoader(toy(41), group_by_length=grouped, max_buckets=4, sharding=sharding, **size)
        for first in (0, 3):
            loaded = take(loader, loader.steps_per_epoch, first)
            seen = [jax.tree.map(lambda array: (array.shape, array.dtype), batch.batch) for batch in loaded]
            told = [jax.tree.map(lambda array: (array.shape, array.dtype), batch) for batch in loader.shapes(first, 99)]
            assert told == list(dict.fromkeys(seen)) and len(told) > 1
            assert [batch.audio.sharding for batch in loader.shapes(first, 1)] == [sharding]
        assert loader.shapes(5, 0) == loader.shapes(5, -2) == []
    loader = EvalLoader(toy(41), batch_size=4, max_buckets=4, sharding=sharding)
    shapes = dict.fromkeys(batch.batch.audio.shape for batch in loader)
    assert [batch.audio.shape for batch in loader.shapes()] == list(shapes)


def test_the_wait_for_slow_clips_is_measured():
    split = toy(4)
    quick = split.read_audio

    def slow(clip):
        time.sleep(0.2)
        return quick(clip)

    split.read_audio = slow
    assert take(TrainLoader(split, batch_size=2, prefetch=1), 1)[0].data_wait_s >= 0.1


def test_unusable_splits_and_sizes_are_refused():
    with pytest.raises(InputError, match="'train' has no usable clips"):
        EvalLoader(toy(0), batch_size=2)
    with pytest.raises(InputError, match="3 clips, less than one batch.*--dataloader_drop_last"):
        TrainLoader(toy(3), batch_size=4, drop_last=True)
    with pytest.raises(ValueError, match="6 rows cannot be shared among 4"):
        TrainLoader(toy(3), batch_size=6, process_count=4)
    with pytest.raises(ValueError, match="process_index=2"):
        TrainLoader(toy(3), batch_size=6, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="longer than the last bucket edge"):
        TrainLoader(toy(3), batch_size=2, edges=np.array([10]))


PROGRAM = """
import json, os, signal, sys
import multiprocessing
import cloudpickle
sys.path[:0] = {paths!r}
import test_loader
from test_loader import toy
from xtremes_jax.data.loader import TrainLoader

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]

def workers():
    return [child.pid for child in multiprocessing.active_children()]

if __name__ == "__main__":
    # A shell that starts the tests in the background has them, and so this program, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cloudpickle.register_pickle_by_value(test_loader)  # workers need not import this file
    before = handlers()
    batches = TrainLoader(toy(), batch_size=4, num_workers=2).iterate(0)
    first = next(batches), next(batches), next(batches)
    print(json.dumps(workers()), flush=True)
"""


def start(body: str) -> subprocess.Popen:
    """A program that takes three batches through two workers, prints the workers' ids, then runs `body`."""
    program = PROGRAM.format(paths=[str(REPOSITORY), str(Path(__file__).parent)])
    program += textwrap.indent(textwrap.dedent(body), "    ")
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids: list[int], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_workers_serve_through_signals_and_end_when_closed():
    program = start("""
        for pid in workers():
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        ids = [next(batches).batch.sample_ids.tolist() for _ in range(15)]
        batches.close()
        print(json.dumps([ids, workers(), handlers() == before]))
    """)
    output, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, "")
    pids, (ids, left, handlers_kept) = map(json.loads, output.splitlines())
    assert len(pids) == 2 and left == [] and handlers_kept
    assert ids == [loaded.batch.sample_ids.tolist() for loaded in take(TrainLoader(toy(), batch_size=4), 15, 3)]
    assert all_gone(pids)


def test_a_program_that_ends_without_closing_leaves_no_worker():
    program = start("")
    output, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, "")
    assert all_gone(json.loads(output))


def test_workers_do_not_outlive_a_killed_run():
    program = start("sys.stdin.read()")
    pids = json.loads(program.stdout.readline())
    assert len(pids) == 2 and all(map(alive, pids))
    program.kill()
    program.communicate()
    assert all_gone(pids)


def test_control_c_reaches_the_caller_who_waits_for_a_batch():
    program = start("""
        try:
            while True:
                next(batches)
        except KeyboardInterrupt:
            batches.close()
            print(json.dumps(workers()))
    """)
    pids = json.loads(program.stdout.readline())
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    output, errors = program.communicate(timeout=60)
    assert (program.returncode, errors, output) == (0, "", "[]\n")
    assert all_gone(pids)
