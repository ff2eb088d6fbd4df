"""Recordings too long for one pass, recognised in overlapping windows: batches of windows in, tokens of recordings out.

Every window is a clip of its own to the model, normalised by itself. Batches have one shape, so one program serves all
recordings; of a recording no more is held than a window and a minute of audio, and what its decoder keeps of a frame.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.data import audio
from xtremes_jax.data.buckets import PlannedBatch
from xtremes_jax.data.loader import LoadedBatch
from xtremes_jax.data.prepare import PreparedSplit, SkippedClip
from xtremes_jax.data.recordings import Recording, pad_windows, read_windows
from xtremes_jax.errors import InputError
from xtremes_jax.models import Window, Windowing
from xtremes_jax.models.ctc_windows import window_decoder

LONG_SECONDS = 60
"""What is longer is told of where it is computed in one pass: the corpora's clips are half as long at most."""

Place = tuple[int, int]
"""A window: the number of its recording, and its own number there."""


class WindowBatches:
    """The windows of recordings in batches of one shape, in order; the last one is filled up.

    Args:
        recordings: (samples at 16 kHz, what opens it) of each; see `data.recordings.Recording`.
        windowing: how they are cut.
        rows: windows of a batch.
        dtype: int16 or float32, of all audio.
    """

    def __init__(
        self,
        recordings: Sequence[tuple[int, Callable[[], Iterator[np.ndarray]]]],
        windowing: Windowing,
        *,
        rows: int,
        dtype: np.dtype | type,
    ):
        self.windowing, self.rows, self.dtype = windowing, rows, np.dtype(dtype)
        self.windows = [windowing.plan(num_samples) for num_samples, _ in recordings]
        self._recordings = [
            Recording(num_samples, pieces, [(window.start, window.stop) for window in windows])
            for (num_samples, pieces), windows in zip(recordings, self.windows, strict=True)
        ]
        places = [(number, place) for number, windows in enumerate(self.windows) for place in range(len(windows))]
        filler = [None] * (-len(places) % rows)
        self.places: list[Place | None] = [*places, *filler]
        """Of each row of each batch, one after the other; None for a row that is filled up."""

    def __len__(self) -> int:
        return len(self.places) // self.rows

    def batch(self, index: int) -> list[Place | None]:
        """The places of a batch's rows."""
        return self.places[index * self.rows : (index + 1) * self.rows]

    def read(self, index: int = 0, count: int = 1) -> Iterator[tuple[list, np.ndarray, np.ndarray]]:
        """Batches in order: what `read_windows` has found of each row, audio `[rows, samples]` and lengths `[rows]`.

        A thread reads one batch ahead.

        Args:
            index, count: this process's of all; it gets every batch's `index`th part of `count`, and reads no others.
        """
        part = self.rows // count
        mine = [self.batch(number)[index * part : (index + 1) * part] for number in range(len(self))]
        found = read_windows(self._recordings, [place for places in mine for place in places])

        def next_batch() -> tuple[list, np.ndarray, np.ndarray]:
            rows = list(itertools.islice(found, part))
            return rows, *pad_windows(rows, self.windowing.length, self.dtype)

        with ThreadPoolExecutor(1, "windows") as pool:
            ahead = pool.submit(next_batch)
            for _ in mine:
                batch, ahead = ahead.result(), pool.submit(next_batch)
                yield batch

    def window(self, place: Place) -> Window:
        """The window at a place."""
        return self.windows[place[0]][place[1]]


class Joiner:
    """Joins the windows of `WindowBatches`, which come batch by batch.

    Args:
        batches: they.
        blank: id of the CTC blank.
        beams: of the search; see `models.ctc_windows`.
    """

    def __init__(self, batches: WindowBatches, *, blank: int, beams: int):
        self._batches, self._options = batches, {"blank": blank, "beams": beams}
        self._number, self._decoder, self._is_whole = -1, None, True

    def add(self, index: int, frames: np.ndarray, are_read: Sequence[bool]) -> Iterator[tuple[int, np.ndarray]]:
        """Takes a batch's frames, of which `models.ctc_windows.for_decoding` has made what they are decoded from.

        Args:
            index: of the batch; they come in order.
            frames: `[rows, frames, ...]`.
            are_read: of each row, whether its audio could be read.

        Yields:
            (number, token ids) of each recording that ends in this batch and all of whose windows could be read.
        """
        for row, place in enumerate(self._batches.batch(index)):
            if place is None:
                continue
            if place[0] != self._number:
                self._number, self._decoder, self._is_whole = place[0], window_decoder(**self._options), True
            self._is_whole &= bool(are_read[row])
            window = self._batches.window(place)
            if self._is_whole:
                self._decoder.add(frames[row], window.first, window.last)
            if self._is_whole and place[1] == len(self._batches.windows[place[0]]) - 1:
                yield place[0], self._decoder.tokens()


class WindowLoader:
    """The clips of a split in windows, as an `EvalLoader` gives clips whole; labels are empty, and nothing has a loss.

    Args:
        split: the clips.
        windowing: how they are cut.
        rows: of the global batch.
        process_index, process_count: this process reads that part of each batch's rows, and decodes no recordings but
            those that they are of.
        sharding: of the batch axis.
    """

    def __init__(
        self,
        split: PreparedSplit,
        windowing: Windowing,
        *,
        rows: int,
        process_index: int = 0,
        process_count: int = 1,
        sharding: Any = None,
    ):
        def opener(clip: int) -> Callable[[], Iterator[np.ndarray]]:
            row = int(split.rows[clip])
            return lambda: audio.decode_pieces(split.raw.audio(row), split.raw.segment(row))

        recordings = [(int(samples), opener(clip)) for clip, samples in enumerate(split.num_samples)]
        dtype = np.float32 if split.is_float else np.int16
        self.split, self.batches = split, WindowBatches(recordings, windowing, rows=rows, dtype=dtype)
        self._process, self._sharding = (process_index, process_count), sharding

    def __len__(self) -> int:
        return len(self.batches)

    def plan(self) -> list[PlannedBatch]:
        """The batches of a pass; `indices` are places of the windows among all."""
        count = sum(place is not None for place in self.batches.places)
        starts = range(0, count, self.batches.rows)
        return [
            PlannedBatch(
                np.arange(start, min(start + self.batches.rows, count)), self.batches.windowing.length,
                self.batches.rows,
            )
            for start in starts
        ]  # fmt: skip

    def shapes(self) -> list[Batch]:
        """The one shape of all batches, as `EvalLoader.shapes` gives several."""
        length, rows = self.batches.windowing.length, self.batches.rows
        host = _as_batch(np.zeros((1, length), self.batches.dtype), np.zeros(1, np.int32), [-1])

        def shape(row: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows, *row.shape[1:]), row.dtype, sharding=self._sharding)

        return [jax.tree.map(shape, host)]

    def __iter__(self) -> Iterator[LoadedBatch]:
        """One pass, read one batch ahead."""
        index, count = self._process
        told: set[int] = set()
        for step, (rows, samples, lengths) in enumerate(self.batches.read(index, count)):
            places = self.batches.batch(step)
            mine = places[index * len(rows) : (index + 1) * len(rows)]
            ids = [
                self._id(place if isinstance(row, np.ndarray) else None) for place, row in zip(mine, rows, strict=True)
            ]
            batch = _as_batch(samples, lengths, ids)
            yield self._loaded(step, places, batch, self._skipped(mine, rows, told))

    def _loaded(
        self, step: int, places: list[Place | None], batch: Batch, skipped: tuple[SkippedClip, ...]
    ) -> LoadedBatch:
        if self._sharding is not None:
            put = jax.make_array_from_process_local_data
            batch = jax.tree.map(lambda array: put(self._sharding, array), batch)
        real = [place for place in places if place is not None]
        windows = map(self.batches.window, real)
        seconds = sum(window.stop - window.start for window in windows) / SAMPLE_RATE
        padded = len(places) * self.batches.windowing.length / SAMPLE_RATE
        return LoadedBatch(step, 0, batch, skipped, 0.0, len(real), seconds, padded, tuple(map(self._id, real)))

    def _id(self, place: Place | None) -> int:
        return -1 if place is None else int(self.split.rows[place[0]])

    def _skipped(self, places: list[Place | None], rows: list, told: set[int]) -> tuple[SkippedClip, ...]:
        """Those of these recordings that cannot be read and have not been told of."""
        found = {place[0]: row for place, row in zip(places, rows, strict=True) if isinstance(row, InputError)}
        new = found.keys() - told
        told |= new
        split = self.split
        return tuple(
            SkippedClip(split.name, int(split.rows[clip]), split.clip_names[clip], str(found[clip]))
            for clip in sorted(new)
        )


def _as_batch(samples: np.ndarray, lengths: np.ndarray, sample_ids: Sequence[int]) -> Batch:
    rows = len(samples)
    return Batch(
        audio=samples,
        audio_lengths=lengths,
        labels=np.zeros((rows, 1), np.int32),
        label_lengths=np.zeros(rows, np.int32),
        weight=np.zeros(rows, np.float32),
        sample_ids=np.asarray(sample_ids, np.int32),
    )
