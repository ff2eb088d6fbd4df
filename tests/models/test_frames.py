"""Models given frames in place of audio: the same outputs, in every layout and for every kind of model."""

import jax
import numpy as np
import pytest
from models.translation_models import config_of, parameters

from xtremes_jax.models import abstract_model, merge, split_params

LENGTHS = np.array([4000, 2500, 3333], np.int32)


def functions(config, params):
    """(audio -> frames, model on audio or frames), compiled."""
    graphdef, _ = split_params(abstract_model(config))

    @jax.jit
    def extract(audio):
        return merge(graphdef, params).backbone.extract_frames(audio, jax.numpy.asarray(LENGTHS))

    @jax.jit
    def run(audio, frames, *labels):
        return merge(graphdef, params)(audio, LENGTHS, *labels, frames=frames)

    return extract, run


@pytest.mark.parametrize("layout", ["layer", "group"])
def test_logits_of_frames_are_those_of_audio(rng, tiny_config, random_params, ragged_audio, layout):
    config = tiny_config(layout)
    extract, run = functions(config, jax.device_put(random_params(config, rng)))
    audio = ragged_audio(rng, LENGTHS)
    frames = np.asarray(extract(audio))
    assert frames.shape == (3, config.num_frames(4000), config.conv_dim[-1])
    kept = np.arange(frames.shape[1]) < np.asarray(config.num_frames(LENGTHS))[:, None]
    expected = run(audio, None)
    # What lies past a clip's frames, zeros in place of the front end's noise, changes nothing.
    for given in (frames, np.where(kept[:, :, None], frames, np.float32(0))):
        found = run(None, given)
        np.testing.assert_array_equal(found.logit_lengths, expected.logit_lengths)
        for row, count in enumerate(expected.logit_lengths):
            np.testing.assert_allclose(found.logits[row, :count], expected.logits[row, :count], atol=1e-5)


def test_translations_of_frames_are_those_of_audio(rng, ragged_audio):
    config = config_of("projected adapter")
    extract, run = functions(config, jax.device_put(parameters(config, rng)))
    audio, labels = ragged_audio(rng, LENGTHS), rng.integers(4, 31, (3, 6)).astype(np.int32)
    expected = run(audio, None, labels)
    np.testing.assert_allclose(run(None, extract(audio), labels).logits, expected.logits, atol=1e-5)
