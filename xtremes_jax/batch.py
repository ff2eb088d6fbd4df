"""The one thing that the data half and the model half share."""

from typing import Any, NamedTuple

SAMPLE_RATE = 16_000
"""Samples per second of every waveform past `data/audio.py`."""


class Batch(NamedTuple):
    """Padded clips: NumPy arrays on the host, JAX arrays on the devices (a NamedTuple is a pytree in itself).

    Filler rows make up the row count that the compiled step expects; their weight and lengths are 0, so they count in
    no loss, gradient or metric.
    """

    audio: Any
    """`[batch, samples]` int16 PCM at 16 kHz, or float32 in [-1, 1] where the source is float; 0 past the length. None
    where `frames` are there."""
    audio_lengths: Any
    """`[batch]` int32, in samples at 16 kHz."""
    labels: Any
    """`[batch, labels]` int32: token ids for CTC (0 past the length), one class id for classification."""
    label_lengths: Any
    """`[batch]` int32, in tokens."""
    weight: Any
    """`[batch]` float32: 1 for a clip, 0 for a filler row."""
    sample_ids: Any
    """`[batch]` int32: the clip's row in its split as it was loaded, -1 for a filler row."""
    frames: Any = None
    """`[batch, frames, channels]` bfloat16, what the frozen front end made of the audio before (`--cache_frontend`);
    finite past the frames of `audio_lengths`. None: the model makes them of `audio`."""
