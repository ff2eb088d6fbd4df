"""Long recordings on the host: read once, from the start on, and cut into overlapping windows on the way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xtremes_jax.data.collate import RESAMPLER_SLACK, as_type
from xtremes_jax.errors import InputError

Span = tuple[int, int]
"""First sample of a window and the one after its last."""


@dataclass(frozen=True)
class Recording:
    """One that is read in windows."""

    num_samples: int
    """At 16 kHz, as its header says."""
    pieces: Callable[[], Iterator[np.ndarray]]
    """Opens it and decodes it in order: see `audio.decode_pieces`."""
    windows: Sequence[Span]
    """Their starts and their ends do not go back."""


def read_windows(
    recordings: Sequence[Recording], wanted: Sequence[tuple[int, int] | None]
) -> Iterator[np.ndarray | InputError | None]:
    """The audio of some windows, in order; each recording is opened once, and a window and a piece of it kept at most.

    Args:
        recordings: that the windows are of.
        wanted: (recording, window) by their numbers, in ascending order; None for a place to be left empty.

    Yields:
        `[samples]` int16 or float32 for each of those that are wanted; None for None; where a recording cannot be read
        so far, the error, for this window of it and all after it.
    """
    opened, reader, error = -1, None, None
    for place in wanted:
        if place is None:
            yield None
            continue
        number, window = place
        recording = recordings[number]
        if number != opened:
            opened, reader, error = number, _Reader(recording), None
        if error is None:
            try:
                found = reader.read(*recording.windows[window])
                if window == len(recording.windows) - 1:
                    reader.finish()
                yield found
                continue
            except (InputError, OSError) as failure:
                error = failure if isinstance(failure, InputError) else InputError(str(failure))
        yield error


class _Reader:
    """Windows of one recording, which it holds no more of than it needs."""

    def __init__(self, recording: Recording):
        self._promised, self._open, self._pieces = recording.num_samples, recording.pieces, None
        self._held, self._start = np.zeros(0, np.int16), 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop`; neither may be less than in the last call."""
        if self._pieces is None:
            self._pieces = self._open()
        parts, end = [self._held[start - self._start :]], self._start + len(self._held)
        while end < stop:
            piece = next(self._pieces, None)
            if piece is None:
                raise InputError(self._says(end))
            parts.append(piece[max(0, start - end) :])
            end += len(piece)
        self._held, self._start = np.concatenate(parts), start
        return self._held[: stop - start]

    def finish(self) -> None:
        """Raises `InputError` unless the recording, read to its end, is as long as its header has said."""
        end = self._start + len(self._held) + sum(map(len, self._pieces))
        if not self._promised <= end <= self._promised + RESAMPLER_SLACK:
            raise InputError(self._says(end))

    def _says(self, there: int) -> str:
        return (
            f"decoded to {there} samples although its header promised {self._promised}: the file changed after it was "
            "prepared (--overwrite_cache prepares it again), or its header is wrong"
        )


def pad_windows(
    windows: Sequence[np.ndarray | InputError | None], length: int, dtype: np.dtype | type
) -> tuple[np.ndarray, np.ndarray]:
    """Windows as rows `[windows, length]` of int16 or float32, 0 past their ends, and their lengths `[windows]` int32.

    What is no audio is a row of length 0.
    """
    audio, lengths = np.zeros((len(windows), length), dtype), np.zeros(len(windows), np.int32)
    for row, window in enumerate(windows):
        if isinstance(window, np.ndarray):
            audio[row, : len(window)] = as_type(window, np.dtype(dtype))
            lengths[row] = len(window)
    return audio, lengths
