"""Log-mel features beside those of Transformers' `SeamlessM4TFeatureExtractor`, which computes in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.models.log_mel import log_mel
from xtremes_jax.models.wav2vec2_bert import Wav2Vec2BertConfig

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-3
"""Of energies' natural logarithms. Divided by a band's deviation over the clip it is that of the features, and so at
most where that is less than 1: the extractor, too, rounds logarithms to float32 before it divides, and where a band
stays the same but for rounding, the features are that rounding."""
LENGTHS = (16_000, 9_440, 5_999, 720, 719, 560)
run = jax.jit(log_mel)


def noise(rng, length):
    """Noise on a random walk, with an offset."""
    return 300 * rng.standard_normal(length) + 12 * rng.standard_normal(length).cumsum() + 900


def tones(rng, length):
    """A loud tone, a soft one, and noise 40 dB below."""
    time = np.arange(length) / 16_000
    first, second = rng.uniform(100, 3000, 2)
    loud = 8000 * np.sin(2 * np.pi * first * time) + 300 * np.sin(2 * np.pi * second * time)
    return loud + 60 * rng.standard_normal(length)


def batch_of(kind, rng, dtype):
    """Ragged clips, random past their ends."""
    audio = rng.integers(-5000, 5000, (len(LENGTHS), max(LENGTHS) + 333)).astype(np.int16)
    for row, length in enumerate(LENGTHS):
        audio[row, :length] = np.clip(np.round(kind(rng, length)), -32768, 32767)
    if dtype == np.float32:
        return audio.astype(np.float32) / 32768 + np.float32(1e-6) * rng.standard_normal(audio.shape, np.float32)
    return audio


def expected_of(audio, length):
    """The features of one clip, without half of one at its end; and their tolerance."""
    clip = audio[:length].astype(np.float32) / (32768 if audio.dtype == np.int16 else 1)
    extractor = transformers.SeamlessM4TFeatureExtractor()
    found = extractor(clip, sampling_rate=16_000, return_tensors="np")
    energies = extractor(
        clip, sampling_rate=16_000, return_tensors="np", do_normalize_per_mel_bins=False
    ).input_features[0].reshape(-1, 80)[: (length - 400) // 160 + 1]  # fmt: skip
    tolerance = TOLERANCE / np.minimum(energies.std(axis=0, ddof=1), 1)
    return found.input_features[0, : found.attention_mask.sum()], np.tile(tolerance, 2)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("kind", [noise, tones])
def test_features_are_those_of_transformers(kind, dtype, rng):
    audio = batch_of(kind, rng, dtype)
    features = np.asarray(run(audio, np.array(LENGTHS, np.int32)))
    assert features.dtype == np.float32
    for row, length in enumerate(LENGTHS):
        expected, tolerance = expected_of(audio[row], length)
        assert len(expected) == Wav2Vec2BertConfig().num_frames(length) > 0
        difference = np.abs(features[row, : len(expected)] - expected)
        if kind is noise:
            assert (difference <= tolerance).all(), (difference / tolerance).max()
        else:  # where noise cancels out in a narrow band, the rounding of the tone is left
            assert (difference <= tolerance).mean() > 0.995 and (difference <= 10 * tolerance).all()
        if kind is noise and length > 5000:
            assert difference.max() <= TOLERANCE
        assert (features[row, len(expected) :] == 0).all()


@pytest.mark.parametrize("kind", [noise, tones])
def test_clips_give_what_they_give_alone(kind, rng):
    audio = batch_of(kind, rng, np.int16)
    features = run(audio, np.array(LENGTHS, np.int32))
    for row, length in enumerate(LENGTHS):
        _, tolerance = expected_of(audio[row], length)
        alone = run(audio[row : row + 1, :length], None)[0]
        difference = np.abs(features[row, : len(alone)] - alone)
        assert (difference <= tolerance * (1 if kind is noise else 10)).all()


def test_silence_and_empty_rows_are_finite(rng):
    audio = np.zeros((3, 4000), np.int16)
    audio[1] = 77
    audio[2, 2000:] = 1000 * rng.standard_normal(2000)
    features = np.asarray(run(audio, np.array([4000, 4000, 0], np.int32)))
    np.testing.assert_array_equal(features[0], 0)
    np.testing.assert_array_equal(features[2], 0)
    np.testing.assert_array_equal(features[1], 0)
    assert np.isfinite(features).all()


def test_what_is_too_short_is_refused():
    assert Wav2Vec2BertConfig().min_samples == 560
    with pytest.raises(InputError, match="559 samples gives no frame: this model needs at least 560"):
        log_mel(jnp.zeros((1, 559), jnp.int16), None)
