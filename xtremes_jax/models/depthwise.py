"""A convolution over frames of each channel by itself, as Conformer layers have it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xtremes_jax.models.partitioning import whole


class DepthwiseConvolution(nnx.Module):
    """One kernel for each channel, without a bias; as many frames come out as go in.

    Args:
        channels: of input and output.
        width: of the kernels, in frames.
        is_causal: whether a frame sees only those before it, and itself; else as many on either side.
    """

    def __init__(self, channels: int, width: int, *, is_causal: bool = False, dtype: Any, rngs: nnx.Rngs):
        self.dtype = dtype
        self.padding = (width - 1, 0) if is_causal else (width // 2, (width - 1) // 2)
        normal = jax.nn.initializers.normal((2.0 / width) ** 0.5)
        self.kernel = nnx.Param(normal(rngs.params(), (width, 1, channels), jnp.float32))

    def __call__(self, x: Float[Array, "batch frames channels"]) -> Float[Array, "batch frames channels"]:
        """The convolved frames, in the compute dtype; beyond either end are zeros."""
        return depthwise(x.astype(self.dtype), self.kernel[...], self.padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "batch frames channels"], kernel: Float[Array, "width 1 channels"], padding: tuple[int, int]
) -> Float[Array, "batch frames channels"]:
    """The convolution in the dtype of `x`, with a float32 kernel whose gradient is summed in float32."""
    return _convolution(x, whole(kernel.astype(x.dtype)), padding)


def _convolution(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), [padding], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[2]
    )


def _forward(x: Array, kernel: Array, padding: tuple[int, int]) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, kernel, padding), (x, kernel)


def _backward(padding: tuple[int, int], saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    flipped = whole(jnp.flip(kernel, axis=0).astype(x.dtype))
    of_x = _convolution(gradient, flipped, padding[::-1])
    return of_x, _kernel_gradient(x, gradient, kernel.shape[0], padding)


def _kernel_gradient(x: Array, gradient: Array, width: int, padding: tuple[int, int]) -> Array:
    """`[width, 1, channels]`: of each tap, the sum over rows and frames of what it met times what came of it."""
    x = jnp.pad(x, ((0, 0), padding, (0, 0)))
    frames = gradient.shape[1]

    def tap(start: Array) -> Array:
        met = jax.lax.dynamic_slice_in_dim(x, start, frames, axis=1)
        return jnp.sum(met.astype(jnp.float32) * gradient.astype(jnp.float32), axis=(0, 1))

    return jax.lax.map(tap, jnp.arange(width))[:, None, :]


depthwise.defvjp(_forward, _backward)
