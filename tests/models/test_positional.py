"""The positional convolution: brute force, and its own gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xtremes_jax.models.positional import PositionalConvolution, grouped_convolution


def by_hand(x: np.ndarray, kernel: np.ndarray, groups: int) -> np.ndarray:
    """Every output by its definition, in float64: PyTorch's padding of width // 2, cut to the number of frames."""
    width, inputs, outputs = kernel.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (width // 2, width // 2), (0, 0)))
    y = np.zeros((*x.shape[:2], outputs))
    for frame in range(x.shape[1]):
        for out in range(outputs):
            group = out // (outputs // groups)
            window = padded[:, frame : frame + width, group * inputs : (group + 1) * inputs]
            y[:, frame, out] = np.sum(window * kernel[:, :, out], axis=(1, 2))
    return y


def plain(x, kernel, groups):
    """The same convolution with XLA's own gradient."""
    width = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1,),
        [(width // 2, (width - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


@pytest.mark.parametrize(("width", "groups"), [(8, 4), (5, 3), (1, 1), (6, 12), (16, 2), (32, 3), (19, 2), (34, 2)])
def test_values_and_gradients(width, groups, rng):
    x = jnp.asarray(rng.standard_normal((3, 11, 12)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((width, 12 // groups, 12)).astype(np.float32))
    weights = jnp.asarray(rng.standard_normal(x.shape).astype(np.float32))
    expected = by_hand(np.asarray(x), np.asarray(kernel), groups)
    np.testing.assert_allclose(grouped_convolution(x, kernel, groups), expected, atol=2e-5)

    def loss(function):
        return jax.grad(lambda x, kernel: jnp.sum(weights * jnp.sin(function(x, kernel, groups))), (0, 1))

    ours, xla = jax.jit(loss(grouped_convolution))(x, kernel), jax.jit(loss(plain))(x, kernel)
    for one, other in zip(ours, xla, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_half_precision_keeps_the_kernels_gradient_in_float32(rng):
    x = jnp.asarray(rng.standard_normal((2, 9, 8)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((4, 2, 8)), jnp.float32)

    def total(x, kernel):
        return grouped_convolution(x, kernel, 4).astype(jnp.float32).sum()

    gradients = jax.grad(total, (0, 1))(x, kernel)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32]


def test_weight_norm_keeps_the_direction_and_sets_the_length(tiny_config, rng):
    config = tiny_config()
    layer = PositionalConvolution(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.standard_normal((2, 10, config.hidden_size)).astype(np.float32))
    before = layer(x)
    layer.weight_v[...] = layer.weight_v[...] * 7.0  # the length of v does not count
    np.testing.assert_allclose(layer(x), before, rtol=1e-5, atol=1e-6)
    layer.weight_g[...] = layer.weight_g[...] * 2.0
    assert np.abs(layer(x) - before).max() > 1e-3
