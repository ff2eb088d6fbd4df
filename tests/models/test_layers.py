"""Norms, activations and the convolution against their definitions in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xtremes_jax.models.config_checks import ACTIVATIONS
from xtremes_jax.models.layers import Convolution, FrameGroupNorm, LayerNorm, activate


def randomised(layer, rng):
    """The layer with random parameters in place of ones and zeros."""
    for name, value in nnx.to_pure_dict(nnx.state(layer)).items():
        getattr(layer, name)[...] = jnp.asarray(rng.standard_normal(value.shape).astype(np.float32))
    return layer


def test_layer_norm(rng):
    layer = randomised(LayerNorm(6, epsilon=1e-3), rng)
    x = 3 + 2 * rng.standard_normal((2, 5, 6)).astype(np.float32)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(layer(jnp.asarray(x)), normal * layer.scale[...] + layer.bias[...], atol=2e-6)


def test_layer_norm_computes_in_float32_and_keeps_the_dtype(rng):
    layer = LayerNorm(512, epsilon=1e-5)
    x = jnp.asarray(1000 + rng.standard_normal((1, 512)), jnp.float16)
    y = layer(x)
    assert y.dtype == jnp.float16
    assert np.asarray(y, np.float32).std() == pytest.approx(1.0, abs=0.01)  # 1000² would overflow float16


def test_group_norm_takes_valid_frames_only(rng):
    layer = randomised(FrameGroupNorm(3), rng)
    x = 5 + rng.standard_normal((2, 7, 3)).astype(np.float32)
    lengths = [7, 4]
    valid = jnp.arange(7) < jnp.asarray(lengths)[:, None]
    y = layer(jnp.asarray(x), valid)
    for row, length in enumerate(lengths):
        clip = x[row, :length]
        expected = (clip - clip.mean(0)) / np.sqrt(clip.var(0) + 1e-5) * layer.scale[...] + layer.bias[...]
        np.testing.assert_allclose(y[row, :length], expected, atol=1e-5)
    np.testing.assert_allclose(layer(jnp.asarray(x), None)[0], y[0], atol=1e-6)


def test_group_norm_of_an_empty_row_is_finite(rng):
    layer = randomised(FrameGroupNorm(3), rng)
    x = jnp.asarray(rng.standard_normal((1, 4, 3)).astype(np.float32))
    nothing = jnp.zeros((1, 4), bool)
    assert np.isfinite(layer(x, nothing)).all()
    assert np.isfinite(jax.grad(lambda x: layer(x, nothing).sum())(x)).all()


@pytest.mark.parametrize(("width", "stride", "use_bias"), [(10, 5, False), (3, 2, True), (2, 2, True)])
def test_convolution(width, stride, use_bias, rng):
    layer = Convolution(4, 6, width=width, stride=stride, use_bias=use_bias, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = rng.standard_normal((2, 23, 4)).astype(np.float32)
    kernel = np.asarray(layer.kernel[...])
    frames = (23 - width) // stride + 1
    expected = np.stack(
        [np.einsum("bwi,wio->bo", x[:, stride * t : stride * t + width], kernel) for t in range(frames)], axis=1
    )
    if use_bias:
        expected = expected + np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


def test_gelu_is_exact(rng):
    x = rng.standard_normal(50).astype(np.float32)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(activate("gelu", jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name, rng):
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = 3 * rng.standard_normal(200).astype(np.float32)
    np.testing.assert_allclose(activate(name, jnp.asarray(x)), ACT2FN[name](torch.from_numpy(x)), atol=2e-6)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu"])
def test_the_gradient_of_an_activation_keeps_its_input_alone(name, rng):
    x, along = (jnp.asarray(rng.standard_normal((3, 5)).astype(np.float32)) for _ in range(2))
    x, step = x + 0.01 * jnp.sign(x), 1e-3  # off the kink at 0
    slope = jax.grad(lambda x: jnp.sum(along * activate(name, x)))(x)
    finite = (activate(name, x + step) - activate(name, x - step)) / (2 * step) * along
    np.testing.assert_allclose(slope, finite, atol=2e-3)
    _, pull = jax.vjp(lambda x: activate(name, x), x)
    assert len(jax.tree.leaves(pull)) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_a_layer_norm_is_that_of_its_definition(dtype, rng):
    x, along = (rng.standard_normal((2, 3, 8)).astype(np.float32) for _ in range(2))
    x, scale, bias = (
        jnp.asarray(2 + 3 * x, dtype),
        *(jnp.asarray(rng.standard_normal(8), jnp.float32) for _ in range(2)),
    )
    graphdef = nnx.graphdef(LayerNorm(8, epsilon=1e-3))

    def definition(x, scale, bias):
        wide = x.astype(jnp.float32)
        normal = (wide - wide.mean(-1, keepdims=True)) / jnp.sqrt(wide.var(-1, keepdims=True) + 1e-3)
        return jnp.sum(along * (normal * scale + bias))

    def ours(x, scale, bias):
        return jnp.sum(along * nnx.merge(graphdef, {"scale": scale, "bias": bias})(x))

    for got, expected in zip(
        jax.grad(ours, (0, 1, 2))(x, scale, bias), jax.grad(definition, (0, 1, 2))(x, scale, bias), strict=True
    ):
        assert got.dtype == expected.dtype
        tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance, rtol=tolerance
        )
