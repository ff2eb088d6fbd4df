"""Overlapping windows over recordings of any length: which samples each reads, and which frames of its logits count.

As the pipeline for speech recognition of Transformers has it (`chunk_length_s`, `stride_length_s`): each window is seen
by the model as a clip of its own, and the frames of the stride at its inner ends, which lack what is beyond, are cut
off. Here windows and strides are whole frames, so that the frames that are left, joined, are as many as those of one
pass, each at its place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.errors import InputError
from xtremes_jax.models.config import ModelConfig


class Window(NamedTuple):
    """A stretch of a recording, and the part of its frames that is kept."""

    start: int
    """First sample; a whole number of frames from the recording's start."""
    stop: int
    """Sample after the last one."""
    first: int
    """First of its own frames that is kept."""
    last: int
    """Frame after the last that is kept."""


@dataclass(frozen=True)
class Windowing:
    """How recordings are cut into windows for one model; made by `windowing`."""

    config: ModelConfig
    length: int
    """Samples of a window; a recording's last one may be shorter."""
    left: int
    """Frames cut off at the start of all windows but the first."""
    right: int
    """Frames before the end of a window from which on the next one's are used."""

    @property
    def step(self) -> int:
        """Samples from the start of one window to that of the next."""
        hop = samples_per_frame(self.config)
        return self.length - (self.left + self.right) * hop

    def plan(self, num_samples: int) -> list[Window]:
        """The windows of a recording, in order; the frames that they keep, joined, are those of one pass.

        Args:
            num_samples: of the recording, at 16 kHz. No longer than a window, it is one window, of which all is kept.
                Samples past the last window are too few for another frame.
        """
        hop, frames = samples_per_frame(self.config), self.config.num_output_frames
        total = int(frames(num_samples))
        windows, start = [], 0
        while True:
            stop = min(start + self.length, num_samples)
            remaining = total - start // hop
            is_last = remaining <= int(frames(stop - start))
            last = remaining if is_last else self.length // hop - self.right
            windows.append(Window(start, stop, self.left if start else 0, last))
            if is_last:
                return windows
            start += self.step


def windowing(
    config: ModelConfig, chunk_length_s: float | int, stride_length_s: float | int | Sequence[float | int] | None = None
) -> Windowing:
    """Windows of `chunk_length_s` seconds, rounded to whole frames of the model, as their strides are.

    Args:
        config: of the model, whose frames tell where a window may begin.
        chunk_length_s: seconds of a window.
        stride_length_s: seconds at the left and at the right end of a window that are there for the sake of the others:
            one number for both, or two; a sixth of the window where absent. Frames that a window's own samples do not
            reach (of a convolution that is not padded, the last one) are cut off at the right at least.

    Raises:
        InputError: a length is negative or no number, or the strides leave nothing of a window.
    """
    given = chunk_length_s / 6 if stride_length_s is None else stride_length_s
    strides = tuple(given) if isinstance(given, Sequence) else (given,)
    if not _is_length(chunk_length_s) or chunk_length_s == 0:
        raise InputError(f"chunk_length_s is {chunk_length_s!r}; it must be a number of seconds above 0.")
    if len(strides) not in (1, 2) or not all(map(_is_length, strides)):
        raise InputError(f"stride_length_s is {given!r}; it must be seconds of at least 0: one number, or two.")
    hop = samples_per_frame(config)
    count, left, right = (round(seconds * SAMPLE_RATE / hop) for seconds in (chunk_length_s, strides[0], strides[-1]))
    right = max(right, count - int(config.num_output_frames(count * hop)))
    if left + right >= count:
        raise InputError(
            f"A window of {chunk_length_s:g} s is {count} frames of this model ({hop / SAMPLE_RATE:g} s each), and its "
            f"strides take {left} and {right} of them, so that none is left. Raise chunk_length_s, or lower "
            "stride_length_s."
        )
    return Windowing(config, count * hop, left, right)


def samples_per_frame(config: ModelConfig) -> int:
    """Samples from one frame that leaves the model to the next: 320 for published models without an adapter."""
    adapter = config.adapter_stride**config.num_adapter_layers if config.add_adapter else 1
    return math.prod(config.conv_stride) * adapter


def _is_length(seconds: object) -> bool:
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    return is_number and math.isfinite(seconds) and seconds >= 0
