"""The heads, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xtremes_jax.models.heads import classification_logits, ctc_logits, unit_embeddings
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


def test_unit_embeddings(rng):
    projector, classifier = linear(rng, 4, 3), linear(rng, 3, 6)
    x = jnp.asarray(rng.standard_normal((3, 5, 4)).astype(np.float32))
    lengths = jnp.array([5, 2, 0])
    embeddings = unit_embeddings(projector, classifier, x, lengths)
    logits = np.asarray(classification_logits(projector, classifier, x, lengths))
    np.testing.assert_allclose(embeddings, logits / np.linalg.norm(logits, axis=1, keepdims=True), atol=1e-6)
    padded = unit_embeddings(projector, classifier, jnp.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=9.0), lengths)
    np.testing.assert_allclose(padded, embeddings, atol=1e-6)


def test_an_embedding_of_nothing_has_a_finite_gradient(rng):
    projector, classifier = linear(rng, 4, 3), linear(rng, 3, 6)
    classifier.bias[...] = jnp.zeros(6)
    x = jnp.asarray(rng.standard_normal((2, 5, 4)).astype(np.float32))
    graphdef, state = nnx.split(classifier)

    def total(state):
        return jnp.sum(unit_embeddings(projector, nnx.merge(graphdef, state), x, jnp.array([0, 3]))[0])

    value, gradient = jax.value_and_grad(total)(state)
    assert value == 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
