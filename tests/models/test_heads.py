"""The two heads, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xtremes_jax.models.heads import classification_logits, ctc_logits
from xtremes_jax.models.layers import Linear
from xtremes_jax.models.masking import Randomness


def linear(rng, inputs, outputs):
    """A linear layer with random weights and bias."""
    normal = jax.nn.initializers.normal()
    layer = Linear(inputs, outputs, kernel_init=normal, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(rng.standard_normal((inputs, outputs)).astype(np.float32))
    layer.bias[...] = jnp.asarray(rng.standard_normal(outputs).astype(np.float32))
    return layer


def by_hand(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def test_ctc_logits(rng):
    layer = linear(rng, 4, 6)
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    logits = ctc_logits(layer, jnp.asarray(x), dropout_rate=0.5, randomness=None)
    np.testing.assert_allclose(logits, by_hand(layer, x), atol=1e-5)
    keys = Randomness(rows=jax.random.split(jax.random.key(0), 2), shared=jax.random.key(1))
    assert np.abs(ctc_logits(layer, jnp.asarray(x), dropout_rate=0.5, randomness=keys) - logits).max() > 0.1


def test_classification_pools_valid_frames(rng):
    projector, classifier = linear(rng, 4, 3), linear(rng, 3, 2)
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    logits = classification_logits(projector, classifier, jnp.asarray(x), jnp.array([5, 2, 0]))
    for row, length in enumerate((5, 2)):
        pooled = by_hand(projector, x[row, :length]).mean(axis=0)
        np.testing.assert_allclose(logits[row], by_hand(classifier, pooled), atol=1e-5)
    np.testing.assert_allclose(logits[2], np.asarray(classifier.bias[...]), atol=1e-6)  # nothing to pool
    everything = classification_logits(projector, classifier, jnp.asarray(x), None)
    np.testing.assert_allclose(everything[0], logits[0], atol=1e-5)
