"""Small building blocks: activations, norms in float32, convolutions over frames, initial distributions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.partitioning import whole
from xtremes_jax.models.platform import platform
from xtremes_jax.models.products import convolve, multiply, spread

PRODUCT = "product"
"""Name of every linear map's result, by which a policy of rematerialisation may keep it."""

CONV_NORM_EPS = 1e-5
"""Epsilon of the norms of the front end: PyTorch's default, whatever `layer_norm_eps` says."""


def _gelu(x: Array) -> Array:
    """`x` times the normal distribution function of `x` (Hendrycks and Gimpel 2016), in float32, as PyTorch has it.

    By the error function, one polynomial; `jax.nn.gelu` takes its complement, which costs twice as much on CPUs.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(name: str, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The activation that Transformers knows by `name` (`config_checks.ACTIVATIONS`); its gradient keeps `x` alone."""
    return _ACTIVATIONS[name](x)


def _activate_forward(name: str, x: Array) -> tuple[Array, Array]:
    return activate(name, x), x


def _activate_backward(name: str, x: Array, gradient: Array) -> tuple[Array]:
    if platform() == "cpu":
        # A gradient that also computes the activation again would share its dearest part with it, and XLA would write
        # that part to memory here instead of computing it twice.
        x = jax.lax.optimization_barrier(x)
    return jax.vjp(_ACTIVATIONS[name], x)[1](gradient)


activate.defvjp(_activate_forward, _activate_backward)


def uniform_initializer(bound: float) -> jax.nn.initializers.Initializer:
    """Draws uniformly from [-bound, bound)."""

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


class Linear(nnx.Module):
    """A linear map of the last axis. Unlike `nnx.Linear`'s, its parameters' gradients are summed in float32.

    It may carry the factors of a low-rank adaptation, which `lora.adapt` gives it.
    """

    lora_A: nnx.Param | None = None
    """`[inputs, rank]`, or with the layers before."""
    lora_B: nnx.Param | None = None
    """`[rank, outputs]`, or with the layers before."""
    lora_scale: float = 1.0
    """What the product with both is multiplied with."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel_init: jax.nn.initializers.Initializer,
        bias_init: jax.nn.initializers.Initializer = jax.nn.initializers.zeros,
        dtype: Any,
        output_dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.output_dtype = dtype if output_dtype is None else output_dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), (outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        """Computes in `dtype`; sums and bias are added, and returned, in `output_dtype` (by default the same)."""
        x = x.astype(self.dtype)
        y = multiply(x, self.kernel[...], self.output_dtype)
        if self.lora_A is not None:
            narrow = checkpoint_name(multiply(x, self.lora_A[...], self.dtype), PRODUCT)
            y = y + multiply(narrow, self.lora_B[...], self.output_dtype) * jnp.asarray(self.lora_scale, y.dtype)
        y = checkpoint_name(y, PRODUCT)
        return y + spread(self.bias[...], y.shape, y.dtype)


def linear(config: ModelConfig, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs, **options: Any) -> Linear:
    """A linear layer with the initial distribution of Transformers: normal weights, zero bias."""
    normal = jax.nn.initializers.normal(config.initializer_range)
    return Linear(inputs, outputs, dtype=dtype, rngs=rngs, **{"kernel_init": normal, **options})


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016): computed in float32, returned in the input's dtype."""

    def __init__(self, features: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "*dims features"]) -> Float[Array, "*dims features"]:
        """Normalises the last axis to zero mean and unit variance, then scales and shifts each feature."""
        return _layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """A function of its own for the sake of its gradient, which keeps `x` alone and normalises it again."""
    return (_normalized(x, epsilon)[0] * whole(scale) + whole(bias)).astype(x.dtype)


def _normalized(x: Float[Array, "*dims features"], epsilon: float) -> tuple[Array, Float[Array, "*dims 1"]]:
    """The last axis with zero mean and unit variance in float32, and what that was multiplied with."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return centred * factor, factor


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, Array]]:
    return _layer_norm(x, scale, bias, epsilon), (x, scale)


def _layer_norm_backward(epsilon: float, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, scale = saved
    normal, factor = _normalized(x, epsilon)
    gradient = gradient.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    inner = gradient * whole(scale)
    # What moves all features together, or along the normalised vector, is normalised away again.
    along = jnp.mean(inner * normal, axis=-1, keepdims=True)
    of_x = factor * (inner - jnp.mean(inner, axis=-1, keepdims=True) - normal * along)
    return of_x.astype(x.dtype), jnp.sum(gradient * normal, axis=rows), jnp.sum(gradient, axis=rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def normalize(x: Float[Array, "*dims features"], epsilon: float) -> Float[Array, "*dims features"]:
    """Layer normalisation without parameters: computed in float32, returned in the input's dtype."""
    return _normalized(x, epsilon)[0].astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) by the statistics of pretraining, in float32.

    Its statistics stay as they are in training too, as PyTorch's do in evaluation: those of a batch would depend on its
    padding, its size and the number of devices, and a clip's result on the clips beside it.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.running_mean = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.running_var = nnx.Param(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "*dims channels"]) -> Float[Array, "*dims channels"]:
        """Brings each channel to what were zero mean and unit variance in pretraining, then scales and shifts it."""
        factor = jax.lax.rsqrt(self.running_var[...] + CONV_NORM_EPS) * self.scale[...]
        return ((x.astype(jnp.float32) - self.running_mean[...]) * factor + self.bias[...]).astype(x.dtype)


class FrameGroupNorm(nnx.Module):
    """Group normalisation with one group per channel: each channel over the valid frames of its clip, in float32.

    PyTorch's takes the padding into its statistics, and is therefore only used on clips one at a time or unmasked; here
    a padded clip gives what it gives alone.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(
        self, x: Float[Array, "batch frames channels"], valid: Bool[Array, "batch frames"] | None
    ) -> Float[Array, "batch frames channels"]:
        """Normalises each channel of each row over its `valid` frames (None: all of them)."""
        wide = x.astype(jnp.float32)

        def mean(values: Array) -> Float[Array, "batch 1 channels"]:
            if valid is None:
                return jnp.mean(values, axis=1, keepdims=True)
            # Not a product with the mask, for which XLA's CPU backend would make an array as large as `values`.
            total = jnp.sum(jnp.where(valid[:, :, None], values, 0.0), axis=1, keepdims=True)
            return total / jnp.maximum(jnp.sum(valid, axis=1).astype(jnp.float32), 1.0)[:, None, None]

        centred = wide - mean(wide)
        factor = jax.lax.rsqrt(mean(jnp.square(centred)) + CONV_NORM_EPS)
        return (centred * (factor * self.scale[...]) + self.bias[...]).astype(x.dtype)


class Convolution(nnx.Module):
    """A strided convolution over time without padding."""

    def __init__(
        self, inputs: int, outputs: int, *, width: int, stride: int, use_bias: bool, dtype: Any, rngs: nnx.Rngs
    ):
        self.stride = stride
        self.dtype = dtype
        # Kaiming's normal distribution for the kernel, PyTorch's default uniform one for the bias.
        normal = jax.nn.initializers.normal((2.0 / (inputs * width)) ** 0.5)
        self.kernel = nnx.Param(normal(rngs.params(), (width, inputs, outputs), jnp.float32))
        bound = (1.0 / (inputs * width)) ** 0.5
        self.bias = nnx.Param(uniform_initializer(bound)(rngs.params(), (outputs,))) if use_bias else None

    def __call__(self, x: Float[Array, "batch steps inputs"]) -> Float[Array, "batch frames outputs"]:
        """`floor((steps - width) / stride) + 1` frames, in the compute dtype."""
        y = convolve(x.astype(self.dtype), self.kernel[...], self.stride)
        return y if self.bias is None else y + spread(self.bias[...], y.shape, y.dtype)
