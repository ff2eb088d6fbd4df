"""From the waveform to frames: normalisation as the feature extractor's, padding, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import Wav2Vec2FeatureExtractor

from xtremes_jax.errors import InputError
from xtremes_jax.models.frontend import FeatureExtractor, FeatureProjection, prepare_waveform

LENGTHS = (3000, 1234, 777)


def test_waveforms_are_normalised_as_by_the_feature_extractor(ragged_audio, rng):
    audio = ragged_audio(rng, LENGTHS)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    clips = [audio[row, :length].astype(np.float32) / 32768 for row, length in enumerate(LENGTHS)]
    # With the mask it takes its statistics over each clip; without, over the padding too.
    options = {"padding": True, "return_attention_mask": True, "return_tensors": "np"}
    expected = extractor(clips, sampling_rate=16_000, **options).input_values
    lengths = jnp.array(LENGTHS)
    for source in (audio, (audio / 32768).astype(np.float32)):
        ours = prepare_waveform(jnp.asarray(source), lengths, normalize=True)
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_without_normalisation_only_the_padding_changes(rng):
    audio = rng.uniform(-1, 1, (2, 600)).astype(np.float32)
    ours = prepare_waveform(jnp.asarray(audio), jnp.array([600, 450]), normalize=False)
    np.testing.assert_array_equal(ours[0], audio[0])
    np.testing.assert_array_equal(ours[1, :450], audio[1, :450])
    assert not ours[1, 450:].any()


def test_without_lengths_every_sample_counts(rng):
    audio = rng.uniform(-1, 1, (2, 600)).astype(np.float32) + 0.5
    ours = np.asarray(prepare_waveform(jnp.asarray(audio), None, normalize=True))
    np.testing.assert_allclose(ours.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(ours.var(axis=1), 1, atol=1e-5)


def test_thirty_seconds_keep_float32_accuracy(rng):
    audio = (0.001 * rng.standard_normal((1, 480_000)) + 0.7).astype(np.float32)
    wide = audio.astype(np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)
    ours = prepare_waveform(jnp.asarray(audio), jnp.array([480_000]), normalize=True)
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_a_row_of_length_zero_becomes_silence(ragged_audio, rng):
    audio = ragged_audio(rng, (500, 400))
    ours = prepare_waveform(jnp.asarray(audio), jnp.array([500, 0]), normalize=True)
    assert not ours[1].any() and np.isfinite(ours).all()


@pytest.mark.parametrize("layout", ["layer", "group"])
def test_frames_of_a_padded_clip_are_those_of_the_clip_alone(layout, tiny_config, rng):
    config = tiny_config(layout)
    extractor = FeatureExtractor(config, dtype=jnp.float32, remat=False, rngs=nnx.Rngs(1))
    audio = jnp.asarray(rng.standard_normal((2, 3000)).astype(np.float32))  # noise in the padding too
    lengths = jnp.array([3000, 1700])
    together, alone = jax.jit(lambda x, n: (extractor(x, n), extractor(x[1:, :1700], None)))(audio, lengths)
    frames = config.num_frames(1700)
    assert together.shape == (2, config.num_frames(3000), config.conv_dim[-1]) and alone.shape[1] == frames
    np.testing.assert_allclose(together[1, :frames], alone[0], atol=1e-5)


def test_rematerialised_front_end_gives_the_same(tiny_config, rng):
    config = tiny_config("group")
    audio = jnp.asarray(rng.standard_normal((2, 1000)).astype(np.float32))
    lengths = jnp.array([1000, 600])

    @jax.jit
    def gradients(audio):
        plain, remat = (
            FeatureExtractor(config, dtype=jnp.float32, remat=remat, rngs=nnx.Rngs(1)) for remat in (False, True)
        )
        return [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x, lengths))))(audio) for f in (plain, remat)]

    plain, remat = gradients(audio)
    assert np.abs(plain).max() > 0
    np.testing.assert_allclose(plain, remat, atol=1e-5)


def test_arrays_too_short_for_a_frame_are_an_error(tiny_config, rng):
    extractor = FeatureExtractor(tiny_config(), dtype=jnp.float32, remat=False, rngs=nnx.Rngs(1))

    def frames(samples):
        return jax.eval_shape(lambda x: extractor(x, None), jax.ShapeDtypeStruct((1, samples), jnp.float32)).shape[1]

    assert frames(325) == 1
    with pytest.raises(InputError, match="324 samples .* at least 325"):
        frames(324)


def test_projection_draws_from_transformers_distribution(tiny_config):
    config = tiny_config(conv_dim=(6, 6, 6, 64), hidden_size=120)
    projection = FeatureProjection(config, dtype=jnp.float32, rngs=nnx.Rngs(1)).projection
    for values in (projection.kernel[...], projection.bias[...]):
        assert 0.1 < np.abs(values).max() <= 64**-0.5
