"""From a prepared split to batches on the devices: decode ahead, collate, put, and know the exact position.

`TrainLoader` is endless and starts at any global step; `EvalLoader` goes once through a split. Both are driven by the
plan in `buckets.py`, so a batch depends on (seed, epoch, lengths) alone: not on workers, threads, hosts or on where the
run was interrupted. The stages are: planned batch of global step i -> this process's rows decoded and collated (grain:
threads, or worker processes) -> put on the devices (one thread, two batches ahead) -> `LoadedBatch`.

A clip that cannot be decoded becomes a filler row (weight 0) and is reported in `LoadedBatch.skipped`.
"""

import functools
import shutil
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.data.buckets import PlannedBatch, batch_edges
from xtremes_jax.data.collate import Reader, Schedule, Steps, settle_worker
from xtremes_jax.data.frames import StoredFrames
from xtremes_jax.data.pairs import Pairs, pair_edges, plan_pairs
from xtremes_jax.data.prepare import PreparedSplit, SkippedClip
from xtremes_jax.errors import InputError
from xtremes_jax.processors import available_cpus

_AHEAD = 2
"""Batches put on the devices before they are asked for."""

_ENDLESS = 2**40
"""Steps of the endless source: more than any run takes (grain wants a length)."""


@dataclass(frozen=True)
class LoadedBatch:
    """One step's input and what is to be known about it."""

    global_step: int
    """The step that consumes it, from 0."""
    epoch: int
    batch: Batch
    """Global JAX arrays where the loader has a sharding; otherwise this process's rows as NumPy arrays."""
    skipped: tuple[SkippedClip, ...]
    """Clips of this process's rows that could not be decoded: filler rows now. Reported again in every epoch."""
    data_wait_s: float
    """Seconds for which the caller was kept waiting for this batch."""
    clips: int
    """Planned clips in the global batch: its rows without filler rows."""
    audio_seconds: float
    """Planned audio in the global batch, without padding."""
    padded_seconds: float
    """Length of the global batch as computed, rows x bucket: audio, padding and filler rows."""
    sample_ids: tuple[int, ...] = ()
    """Planned clips in the global batch: their rows in the dataset, in the order of the batch."""


class TrainLoader:
    """Endless shuffled batches of a split; the whole position is one integer, the global step.

    Attributes:
      edges: `[buckets]` padded lengths in use, in samples.
      steps_per_epoch: batches of every epoch.
    """

    def __init__(
        self,
        split: PreparedSplit,
        *,
        batch_size: int | None = None,
        max_batch_samples: int | None = None,
        multiple: int = 1,
        edges: np.ndarray | None = None,
        max_buckets: int = 16,
        seed: int = 0,
        group_by_length: bool = False,
        drop_last: bool = False,
        num_workers: int = 0,
        prefetch: int = 4,
        process_index: int = 0,
        process_count: int = 1,
        sharding: Any = None,
        pairs: Pairs | None = None,
    ):
        """
        Args:
          split: the clips.
          batch_size: rows of the global batch (per device x devices x accumulation); or
          max_batch_samples: padded samples of the global batch; implies `group_by_length`.
          multiple: devices x accumulation, which divides the rows of every batch.
          edges: padded lengths in samples; chosen by `batch_edges`, `max_buckets` at most, where absent.
          seed: of the order of clips and batches.
          group_by_length: batches of clips of about one length.
          drop_last: leave out the last batch of an epoch if it is not full.
          num_workers: processes that decode; 0 decodes in threads of this process.
          prefetch: decoded batches held ready on the host (per worker).
          process_index, process_count: this process reads rows [index x rows / count, (index + 1) x rows / count).
          sharding: `jax.sharding.NamedSharding` over the batch axis, to get global arrays on the devices.
          pairs: for retrieval: rows alternate between a query and its key (`plan_pairs`); with `batch_size`, which is
            then even on every device, and without `drop_last`.

        Raises:
          InputError: the split has no clips, or not one full batch with `drop_last`.
          ValueError: sizes that do not divide, or a clip longer than the last of the given edges.
        """
        size = {"batch_size": batch_size, "max_batch_samples": max_batch_samples, "multiple": multiple}
        _check(split, size, process_count)
        options = {"seed": seed, "group_by_length": group_by_length, "drop_last": drop_last, **size}
        if pairs is not None:
            self._schedule = _schedule_of_pairs(split.num_samples, pairs, edges, max_buckets, options)
        else:
            if edges is None:
                edges = batch_edges(split.num_samples, group_by_length=group_by_length, max_buckets=max_buckets, **size)
            self._schedule = Schedule(split.num_samples, edges, options)
        if not self._schedule.steps_per_epoch:
            raise InputError(
                f"The split {split.name!r} has {len(split.num_samples)} clips, less than one batch, and incomplete "
                "batches are dropped: lower the batch size or leave out --dataloader_drop_last."
            )
        self.edges, self.steps_per_epoch = self._schedule.edges, self._schedule.steps_per_epoch
        self._reader = Reader(split, self._schedule, process_index, process_count)
        self._num_workers, self._prefetch, self._sharding = num_workers, prefetch, sharding

    def plan(self, epoch: int) -> list[PlannedBatch]:
        """The batches of an epoch, in order: the same on every process."""
        return self._schedule.plan(epoch)

    def shapes(self, first: int, count: int) -> list[Batch]:
        """The different shapes of the `count` batches from a global step on, as they come first; of an epoch at most.

        Batches of `jax.ShapeDtypeStruct`, for a loader with a sharding.
        """
        steps = range(first, first + min(count, self.steps_per_epoch))
        return _shapes((self._schedule.at(step)[1] for step in steps), self._reader, self._sharding)

    def iterate(
        self, start_step: int = 0, *, steps: int = _ENDLESS, stored: StoredFrames | None = None
    ) -> "BatchStream":
        """Batches from a global step on: `with loader.iterate(step) as batches: ...`.

        Args:
          start_step: of the first batch.
          steps: how many batches; without end where absent.
          stored: frames for the batches whose clips are all among them, in place of audio.
        """
        reader = self._reader if stored is None else self._reader.using(stored)
        return BatchStream(reader, start_step, steps, self._num_workers, self._prefetch, self._sharding)


def _schedule_of_pairs(
    num_samples: np.ndarray, pairs: Pairs, edges: np.ndarray | None, max_buckets: int, options: dict[str, Any]
) -> Schedule:
    rows, multiple = options["batch_size"], options["multiple"]
    if rows is None or options["drop_last"] or rows // multiple % 2:
        raise ValueError("pairs need batch_size, of an even number of rows a device, and no drop_last")
    options = {"batch_size": rows, "seed": options["seed"], "group_by_length": options["group_by_length"]}
    if edges is None:
        grouped = options["group_by_length"]
        edges = pair_edges(num_samples, pairs, batch_size=rows, group_by_length=grouped, max_buckets=max_buckets)
    return Schedule(num_samples, edges, {"pairs": pairs, **options}, plan_pairs)


class EvalLoader:
    """Every clip of a split once, longest first; the last batch is filled up with filler rows.

    Attributes:
      edges: `[buckets]` padded lengths in use, in samples.
      steps_per_epoch: batches of one pass, also `len(loader)`.
    """

    def __init__(
        self,
        split: PreparedSplit,
        *,
        batch_size: int | None = None,
        max_batch_samples: int | None = None,
        multiple: int = 1,
        edges: np.ndarray | None = None,
        max_buckets: int = 16,
        num_workers: int = 0,
        prefetch: int = 4,
        process_index: int = 0,
        process_count: int = 1,
        sharding: Any = None,
    ):
        """Arguments and errors as for `TrainLoader`."""
        size = {"batch_size": batch_size, "max_batch_samples": max_batch_samples, "multiple": multiple}
        _check(split, size, process_count)
        if edges is None:
            edges = batch_edges(split.num_samples, max_buckets=max_buckets, **size)
        self._schedule = Schedule(split.num_samples, edges, {"shuffle": False, **size})
        self.edges, self.steps_per_epoch = self._schedule.edges, self._schedule.steps_per_epoch
        self._reader = Reader(split, self._schedule, process_index, process_count)
        self._num_workers, self._prefetch, self._sharding = num_workers, prefetch, sharding

    def plan(self) -> list[PlannedBatch]:
        """The batches of the pass, in order: the same on every process."""
        return self._schedule.plan(0)

    def shapes(self) -> list[Batch]:
        """The different shapes of the batches, as they come first; see `TrainLoader.shapes`."""
        return _shapes(self.plan(), self._reader, self._sharding)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> "BatchStream":
        """One pass; `global_step` counts its batches from 0."""
        return BatchStream(self._reader, 0, len(self), self._num_workers, self._prefetch, self._sharding)


def _shapes(plan: Iterable[PlannedBatch], reader: Reader, sharding: Any) -> list[Batch]:
    def shape(row: np.ndarray, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *row.shape[1:]), row.dtype, sharding=sharding)

    sizes = dict.fromkeys((planned.rows, planned.bucket_samples) for planned in plan)
    return [
        jax.tree.map(functools.partial(shape, rows=rows), reader.filler_rows(1, samples)) for rows, samples in sizes
    ]


def _check(split: PreparedSplit, size: dict[str, int | None], process_count: int) -> None:
    if not len(split.num_samples):
        raise InputError(
            f"The split {split.name!r} has no usable clips: see the skipped and filtered ones, and the duration limits."
        )
    rows = size["batch_size"] if size["batch_size"] is not None else size["multiple"]
    if rows % process_count:
        raise ValueError(f"{rows} rows cannot be shared among {process_count} processes")


class BatchStream(Iterator[LoadedBatch]):
    """Batches of consecutive global steps, decoded and put on the devices ahead, from the moment it is made.

    Close it, or use it in a `with` statement, to stop its threads and workers. It closes itself at its end, at an
    error, when nobody holds it any more, and when the program ends.
    """

    def __init__(self, reader: Reader, first: int, count: int, num_workers: int, prefetch: int, sharding: Any):
        """Steps `first` ... `first + count - 1` of a reader; the other arguments are `TrainLoader`'s."""
        self._schedule, self._ids, self._sharding = reader.schedule, reader.split.rows, sharding
        self._step, self._end = first, first + count
        # In a list, so that closing can let go of it: grain closes again in __del__, with errors if that is at exit.
        self._opened = [iter(_decoded_ahead(Steps(reader, first, count), num_workers, prefetch))]
        self._putter = ThreadPoolExecutor(1, "device-prefetch")
        self._ahead = deque(self._ask() for _ in range(_AHEAD))
        self._closer = weakref.finalize(self, _close, self._putter, self._opened)

    def __next__(self) -> LoadedBatch:
        if self._step == self._end or not self._closer.alive:
            self.close()
            raise StopIteration
        asked = time.perf_counter()
        try:
            batch, skipped = self._ahead.popleft().result()
        except BaseException:
            self.close()
            raise
        wait = time.perf_counter() - asked
        self._ahead.append(self._ask())
        epoch, planned = self._schedule.at(self._step)
        audio = int(self._schedule.num_samples[planned.indices].sum()) / SAMPLE_RATE
        padded = planned.rows * planned.bucket_samples / SAMPLE_RATE
        self._step += 1
        ids = tuple(self._ids[planned.indices].tolist())
        return LoadedBatch(self._step - 1, epoch, batch, skipped, wait, len(ids), audio, padded, ids)

    def close(self) -> None:
        """Stops threads and workers and waits for them; the stream ends here. May be called again."""
        self._closer()

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self) -> Future:
        return self._putter.submit(_next_on_devices, self._opened, self._sharding)


def _close(putter: ThreadPoolExecutor, opened: list) -> None:
    putter.shutdown(wait=True, cancel_futures=True)  # first: only one thread at a time may use grain's iterators
    opened.pop().close()


def _decoded_ahead(steps: Steps, num_workers: int, prefetch: int) -> grain.IterDataset:
    """grain's pipeline of host batches in the order of the steps."""
    # A worker reads one batch at a time; the buffer between it and this process holds the batches that are ready.
    threads = 1 if num_workers else min(prefetch, available_cpus())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=1 if num_workers else prefetch)
    dataset = grain.MapDataset.source(steps).to_iter_dataset(options)
    if not num_workers:
        return dataset
    _check_shared_memory(steps.reader.largest_bytes() * num_workers * (prefetch + 2))
    if not flags.FLAGS.is_parsed():  # grain up to 0.2.18 reads a flag that only absl.app parses (grain issue 1355)
        flags.FLAGS.mark_as_parsed()
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
    return dataset.mp_prefetch(workers, worker_init_fn=settle_worker)


def _check_shared_memory(needed: int) -> None:
    """Refuses what would kill a worker later, without a word: /dev/shm has 64 MB in many containers."""
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else needed
    if free < needed:
        raise InputError(
            f"Workers hand batches over in {shared}, which has {free / 2**20:.0f} MB free where up to "
            f"{needed / 2**20:.0f} MB are needed. Use --dataloader_num_workers 0 (threads), fewer workers or smaller "
            "batches, or give the container more (docker run --shm-size)."
        )


def _next_on_devices(opened: list, sharding: Any) -> tuple[Batch, tuple[SkippedClip, ...]] | None:
    """The next batch as global arrays of the sharding, None when there are no more."""
    host = next(opened[0], None)
    if host is None:
        return None
    # Copied out of the workers' shared memory: it is little and soon freed, and JAX on CPU may keep what it is given.
    batch = jax.tree.map(lambda array: np.array(array) if type(array) is not np.ndarray else array, host.batch)
    if batch.frames is not None:
        batch = batch._replace(frames=batch.frames.view(jnp.bfloat16))
    if sharding is None:
        return batch, host.skipped
    put = jax.make_array_from_process_local_data
    return jax.tree.map(lambda array: put(sharding, array), batch), host.skipped
