"""Attention against NumPy, its two paths against each other, and masked rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.models.attention import attend
from xtremes_jax.models.masking import Randomness


def by_hand(query, key, value, lengths):
    """Softmax attention in float64, over the valid keys only."""
    query, key, value = (array.astype(np.float64) for array in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    for row, length in enumerate(lengths):
        scores[row, :, :, length:] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


def draw(rng, frames=9):
    """Random queries, keys and values: 3 rows, 2 heads of 4 features."""
    return [rng.standard_normal((3, frames, 2, 4)).astype(np.float32) for _ in range(3)]


def keys(rows=3):
    return Randomness(rows=jax.random.split(jax.random.key(2), rows), shared=jax.random.key(3))


NEXT_TO_NO_DROPOUT = 1e-9
"""Takes the explicit path and drops nothing."""


@pytest.mark.parametrize("rate", [0.0, NEXT_TO_NO_DROPOUT])
def test_both_paths_are_softmax_attention_over_valid_keys(rate, rng):
    arrays = draw(rng)
    lengths = [9, 5, 1]
    ours = attend(*map(jnp.asarray, arrays), jnp.array(lengths), dropout_rate=rate, randomness=keys())
    np.testing.assert_allclose(ours, by_hand(*arrays, lengths), atol=2e-6)
    unmasked = attend(*map(jnp.asarray, arrays), None, dropout_rate=rate, randomness=keys())
    np.testing.assert_allclose(unmasked, by_hand(*arrays, [9, 9, 9]), atol=2e-6)


@pytest.mark.parametrize("rate", [0.0, NEXT_TO_NO_DROPOUT])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rows_of_length_zero_are_finite_with_their_gradients(rate, dtype, rng):
    arrays = [jnp.asarray(array, dtype) for array in draw(rng)]
    lengths = jnp.array([0, 4, 0])

    def total(*arrays):
        y = attend(*arrays, lengths, dropout_rate=rate, randomness=keys())
        assert y.dtype == dtype
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    value, gradients = jax.value_and_grad(total, (0, 1, 2))(*arrays)
    assert np.isfinite(value)
    assert all(np.isfinite(np.asarray(gradient, np.float32)).all() for gradient in gradients)


def test_dropout_drops_probabilities_and_keeps_their_mean(rng):
    query, key, value = map(jnp.asarray, draw(rng))
    exact = attend(query, key, value, None)
    many = jax.vmap(
        lambda seed: attend(
            query,
            key,
            value,
            None,
            dropout_rate=0.5,
            randomness=Randomness(rows=jax.random.split(seed, 3), shared=seed),
        )
    )(jax.random.split(jax.random.key(5), 3000))
    assert (np.asarray(many[0]) != np.asarray(exact)).any()
    np.testing.assert_allclose(many.mean(axis=0), exact, atol=0.15)
