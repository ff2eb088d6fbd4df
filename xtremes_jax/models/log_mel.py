"""Log-mel features of raw audio, computed on the device: those of Kaldi as w2v-BERT 2.0 reads them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int16

from xtremes_jax.errors import InputError
from xtremes_jax.models.masking import frame_mask

WINDOW = 400
"""Samples of a frame."""
STEP = 160
"""Samples from one frame to the next."""
BINS = 80
STACKED = 2
"""Frames that one of the model's makes, side by side."""
STACKED_WINDOW = WINDOW + (STACKED - 1) * STEP
STACKED_STEP = STACKED * STEP
FEATURES = STACKED * BINS

_INT16_SCALE = 32768.0
_POINTS = 512
"""Of the Fourier transform: the window and zeros."""
_RATE = 16_000
_LOWEST, _HIGHEST = 20.0, 8000.0
"""Edges of the filters, in Hz."""
_BLOCK = 80
"""Samples that windows and steps are whole numbers of."""
_FLOOR = 1.192092955078125e-07
"""Least energy of a filter, whose logarithm is taken."""
_VARIANCE_FLOOR = 1e-7


def log_mel(
    audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"], audio_lengths: Int[Array, " batch"] | None
) -> Float[Array, "batch frames features"]:
    """Energies of 80 mel bands on a logarithmic scale, each band brought to zero mean and unit variance over a clip.

    Follows `SeamlessM4TFeatureExtractor` of Transformers (and Kaldi's `fbank`): frames of 25 ms every 10 ms, pairs of
    which are then one of 160 numbers every 20 ms. What lies past a clip's last whole pair is 0. Everything is float32.

    Args:
        audio: 16 kHz samples, int16 or floating point in [-1, 1].
        audio_lengths: valid samples of each row; None means all.

    Raises:
        InputError: the arrays are too short for a single pair.
    """
    pairs = (audio.shape[1] - STACKED_WINDOW) // STACKED_STEP + 1
    if pairs < 1:
        raise InputError(
            f"Audio of {audio.shape[1]} samples gives no frame: this model needs at least {STACKED_WINDOW} samples. "
            "Pad the batch, or leave out clips so short."
        )
    samples = audio.astype(jnp.float32)
    if not jnp.issubdtype(audio.dtype, jnp.integer):
        samples = samples * _INT16_SCALE
    x = _log_energies(samples)
    frames = x.shape[1]
    if audio_lengths is None:
        audio_lengths = jnp.full((audio.shape[0],), audio.shape[1], jnp.int32)
    # An odd frame out at a clip's end counts in its statistics, and has no pair.
    counted = jnp.clip((audio_lengths - WINDOW) // STEP + 1, 0, frames)
    x = _normalize(x, counted)
    x = jnp.where(frame_mask(counted // STACKED * STACKED, frames)[:, :, None], x, 0.0)
    return x[:, : STACKED * pairs].reshape(x.shape[0], pairs, FEATURES)


def _log_energies(samples: Float[Array, "batch samples"]) -> Float[Array, "batch frames bins"]:
    """Of every frame that lies within the array; samples are on the scale of 16-bit integers.

    What is soft must not drown in the rounding of a loud tone beside it: pre-emphasis is exact on whole numbers, in
    hundredths. A frame's first sample, which is to have no predecessor in it, meets a window of 0.
    """
    batch, length = samples.shape
    frames = (length - WINDOW) // STEP + 1
    blocks = 2 * (frames + 2)
    samples = jnp.pad(samples, ((0, 0), (0, max(blocks * _BLOCK - length, 0))))[:, : blocks * _BLOCK]
    emphasised = 100 * samples - 97 * jnp.pad(samples, ((0, 0), (1, 0)))[:, :-1]

    def parts(x: Float[Array, "batch samples"]) -> list[Float[Array, "batch frames block"]]:
        """The blocks of every frame, first ones first: two further on for each frame."""
        pairs = x.reshape(batch, -1, 2, _BLOCK)
        return [pairs[:, index // 2 : index // 2 + frames, index % 2] for index in range(WINDOW // _BLOCK)]

    mean = sum(jnp.sum(part, axis=2, keepdims=True) for part in parts(samples)) / WINDOW
    matrices = np.split(_spectrum(), WINDOW // _BLOCK)
    waves = sum(_product(part - 3 * mean, matrix) for part, matrix in zip(parts(emphasised), matrices, strict=True))
    cosines, sines = jnp.split(waves, 2, axis=2)
    energies = _product(jnp.square(cosines) + jnp.square(sines), _filters())
    return jnp.log(jnp.maximum(energies, _FLOOR))


def _product(x: Array, matrix: np.ndarray) -> Array:
    """In float32 also where the default would be less."""
    return jnp.matmul(x, jnp.asarray(matrix, jnp.float32), precision=jax.lax.Precision.HIGHEST)


def _normalize(x: Float[Array, "batch frames bins"], counted: Int[Array, " batch"]) -> Array:
    """Each band less its mean and divided by its deviation, over the first `counted` frames of each row."""
    valid = frame_mask(counted, x.shape[1])[:, :, None]
    count = counted.astype(jnp.float32)[:, None, None]
    # From the first frame on, so that the rounding of a sum is small beside what differs within a clip.
    x = jnp.where(valid, x - x[:, :1], 0.0)
    x = x - jnp.sum(x, axis=1, keepdims=True) / jnp.maximum(count, 1.0)
    square = jnp.sum(jnp.where(valid, jnp.square(x), 0.0), axis=1, keepdims=True)
    return x * jax.lax.rsqrt(square / jnp.maximum(count - 1.0, 1.0) + _VARIANCE_FLOOR)


@functools.cache
def _spectrum() -> Float[np.ndarray, "samples waves"]:
    """What turns hundredths of samples into the real and then the imaginary parts of a spectrum: Povey's window, and
    waves."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))) ** 0.85
    # Whole turns are left out before the sine: it is exact then.
    turns = np.outer(np.arange(WINDOW), np.arange(_POINTS // 2 + 1)) % _POINTS / _POINTS
    return (0.01 * window)[:, None] * np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], axis=1)


@functools.cache
def _filters() -> Float[np.ndarray, "frequencies bins"]:
    """Overlapping triangles of one width on the mel scale (Stevens et al. 1937, as Kaldi has it)."""

    def mel(hertz: Float[np.ndarray, " frequencies"]) -> Float[np.ndarray, " frequencies"]:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(*mel(np.array([_LOWEST, _HIGHEST])), BINS + 2)
    at = mel(np.arange(_POINTS // 2 + 1) * (_RATE / _POINTS))[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))
