"""Planned batches read and collated on the host: what decoding threads and workers run. NumPy only.

A clip that cannot be decoded becomes a filler row (weight 0) and is reported, the same whoever reads it.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np

from xtremes_jax.batch import Batch
from xtremes_jax.data.buckets import PlannedBatch, label_widths, plan_epoch
from xtremes_jax.data.frames import StoredFrames
from xtremes_jax.data.prepare import PreparedSplit, SkippedClip
from xtremes_jax.errors import InputError

logger = logging.getLogger(__name__)

_WORKER_GRACE_SECONDS = 30
"""How long a worker outlives a SIGTERM to the whole process group: long enough for the run to save and close it."""

RESAMPLER_SLACK = 16
"""Samples (1 ms) by which a decoded clip may exceed its bucket, because a resampler rounds; they are cut off."""


class Schedule:
    """The planned batch of every global step. Keeps the two plans made last; goes to workers by pickling."""

    def __init__(
        self, num_samples: np.ndarray, edges: np.ndarray, options: dict[str, Any], planner: Callable = plan_epoch
    ):
        self.num_samples, self._options, self._planner = num_samples, options, planner
        self.edges = np.asarray(edges, np.int64)
        self._plans: dict[int, list[PlannedBatch]] = {}
        self._lock = threading.Lock()
        self.steps_per_epoch = len(self.plan(0))  # in every epoch: see buckets.py

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def plan(self, epoch: int) -> list[PlannedBatch]:
        with self._lock:
            if epoch not in self._plans:
                self._plans[epoch] = self._planner(self.num_samples, self.edges, epoch=epoch, **self._options)
                while len(self._plans) > 2:
                    del self._plans[next(iter(self._plans))]  # the one made first
            return self._plans[epoch]

    def at(self, global_step: int) -> tuple[int, PlannedBatch]:
        """(epoch, batch) of a global step."""
        epoch, index = divmod(global_step, self.steps_per_epoch)
        return epoch, self.plan(epoch)[index]


class HostBatch(NamedTuple):
    """What a worker hands over: a pytree, so that grain sends the arrays through shared memory.

    (Through a pipe they would take longer, and a worker killed in the middle of one would leave the reader waiting.)
    """

    batch: Batch
    skipped: tuple[SkippedClip, ...]


class Reader:
    """Decodes and collates this process's rows of any global step."""

    def __init__(self, split: PreparedSplit, schedule: Schedule, process_index: int, process_count: int):
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index={process_index} is not below process_count={process_count}")
        self.split, self.schedule = split, schedule
        self.process_index, self.process_count = process_index, process_count
        # One type for the run, or a float clip among int16 ones would compile every bucket twice.
        self.dtype = np.dtype(np.float32 if split.is_float else np.int16)
        lengths = [len(labels) for labels in split.labels]
        # Clips longer than any bucket are in no pair, so in no batch.
        self.widths = label_widths(schedule.edges, np.minimum(split.num_samples, schedule.edges[-1]), lengths)
        self.stored: StoredFrames | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Goes to worker processes without what only the main process needs."""
        return {**self.__dict__, "split": self.split.for_workers()}

    def using(self, stored: StoredFrames) -> "Reader":
        """The same, but batches whose clips are all stored have frames in place of audio."""
        reader = object.__new__(Reader)  # not copy.copy, which packs the split as for a worker
        reader.__dict__ = {**self.__dict__, "stored": stored}
        return reader

    def largest_bytes(self) -> int:
        """Size of this process's part of the largest batch of the first epoch."""
        plan = self.schedule.plan(0)
        largest = max(batch.rows * batch.bucket_samples for batch in plan) * self.dtype.itemsize
        if self.stored is not None:
            largest = max(largest, *(self.stored.batch_bytes(batch.rows, batch.bucket_samples) for batch in plan))
        return largest // self.process_count

    def read(self, global_step: int) -> HostBatch:
        """This process's rows, `[rows / process_count, ...]`; clips that cannot be decoded are left as filler rows."""
        _, planned = self.schedule.at(global_step)
        rows = planned.rows // self.process_count
        mine = planned.indices[self.process_index * rows : (self.process_index + 1) * rows]
        if self.stored is not None and self.stored.holds(mine):
            try:
                batch = self._with_frames(mine, rows, planned.bucket_samples)
            except OSError as error:
                logger.warning("Stored frames can no longer be read; they are computed again. %s", error)
                self.stored = batch = None
            if batch is not None:
                return HostBatch(batch, ())
        batch = self.filler_rows(rows, planned.bucket_samples)
        skipped = []
        for row, clip in enumerate(mine):
            try:
                audio = self._audio(int(clip), planned.bucket_samples)
            except (InputError, OSError) as error:
                skipped.append(self._skip(int(clip), error))
                continue
            batch.audio[row, : len(audio)] = audio
            self._describe(batch, row, clip, len(audio))
        return HostBatch(batch, tuple(skipped))

    def filler_rows(self, rows: int, bucket_samples: int) -> Batch:
        """A batch of this bucket without clips."""
        width = int(self.widths[np.searchsorted(self.schedule.edges, bucket_samples)])
        return Batch(
            audio=np.zeros((rows, bucket_samples), self.dtype),
            audio_lengths=np.zeros(rows, np.int32),
            labels=np.zeros((rows, width), np.int32),
            label_lengths=np.zeros(rows, np.int32),
            weight=np.zeros(rows, np.float32),
            sample_ids=np.full(rows, -1, np.int32),
        )

    def _with_frames(self, clips: np.ndarray, rows: int, bucket_samples: int) -> Batch | None:
        """A batch of stored frames; None if some are damaged."""
        found = self.stored.read(clips, rows, bucket_samples)
        if found is None:
            return None
        frames, samples = found
        batch = self.filler_rows(rows, bucket_samples)._replace(audio=None, frames=frames)
        for row, clip in enumerate(clips):
            self._describe(batch, row, clip, samples[row])
        return batch

    def _describe(self, batch: Batch, row: int, clip: int, samples: int) -> None:
        """Fills in all of a row but what is heard in it."""
        labels = self.split.labels[clip]
        batch.audio_lengths[row] = samples
        batch.labels[row, : len(labels)] = labels
        batch.label_lengths[row] = len(labels)
        batch.weight[row] = self.split.has_loss[clip]
        batch.sample_ids[row] = self.split.rows[clip]

    def _audio(self, clip: int, bucket_samples: int) -> np.ndarray:
        audio = self.split.read_audio(clip)
        if len(audio) > bucket_samples + RESAMPLER_SLACK:
            raise InputError(
                f"decoded to {len(audio)} samples although its header promised {self.split.num_samples[clip]}: "
                "the file changed after it was prepared (--overwrite_cache prepares it again), or its header is wrong"
            )
        return as_type(audio[:bucket_samples], self.dtype)

    def _skip(self, clip: int, error: Exception) -> SkippedClip:
        split = self.split
        return SkippedClip(
            split=split.name, sample_id=int(split.rows[clip]), clip=split.clip_names[clip], reason=str(error)
        )


def as_type(audio: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """`[...]` int16 PCM to float32 in [-1, 1] or back (rounded, and clipped where it is louder); else as it is.

    Args:
        audio: int16 or float32 samples.
        dtype: int16 or float32.
    """
    if audio.dtype == dtype:
        return audio
    if dtype == np.int16:
        return np.clip(np.rint(audio * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    return (audio / np.float32(2**15)).astype(np.float32)


@dataclass(frozen=True)
class Steps:
    """grain's source: item i is the global step `first + i`, read when asked for."""

    reader: Reader
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> HostBatch:
        return self.reader.read(self.first + index)


def settle_worker(index: int, count: int) -> None:
    """Leaves the end of a run to the main process: it saves on SIGTERM or Ctrl-C, then closes its workers.

    Both signals often go to the whole process group. A worker that died of them would fail the step being saved; one
    that outlived a killed main process would wait for ever.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _exit_later(_WORKER_GRACE_SECONDS))
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_later(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


def _exit_with_parent() -> None:
    parent_process().join()
    os._exit(1)
