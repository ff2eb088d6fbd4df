"""The positional convolution: a wide grouped convolution over frames, with a gradient and a partitioning of its own.

XLA's weight gradient of a wide grouped convolution on a CPU is more than fifteen times slower than the one matrix
product per group that is written here, and on several devices XLA gathers the whole batch on each of them for any
convolution with 1 < groups < channels (openxla/xla issue 47945), which `jax.shard_map` avoids.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.layers import activate
from xtremes_jax.models.partitioning import batch_axes
from xtremes_jax.models.products import spread

_NEAR_TAPS = 16
"""Most shifts of the gradient that share a product."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def grouped_convolution(
    x: Float[Array, "batch frames inputs"], kernel: Float[Array, "width group_inputs outputs"], groups: int
) -> Float[Array, "batch frames outputs"]:
    """A convolution in `groups` channel groups that keeps the number of frames, in the dtype of `x`.

    The kernel is float32, and so is its gradient's sum over rows and frames. The input is padded with `width // 2` zero
    frames before and `(width - 1) // 2` after, which is PyTorch's padding of `width // 2` on both sides less the last
    frame of an even width.
    """
    width = kernel.shape[0]
    return _convolve(x, kernel, groups, (width // 2, (width - 1) // 2))


def _convolve(x: Array, kernel: Array, groups: int, padding: tuple[int, int]) -> Array:
    dimensions = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1,), [padding], dimension_numbers=dimensions, feature_group_count=groups
    )


def _forward(x: Array, kernel: Array, groups: int) -> tuple[Array, tuple[Array, Array]]:
    return grouped_convolution(x, kernel, groups), (x, kernel)


def _backward(groups: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    width, group_inputs, outputs = kernel.shape
    group_outputs = outputs // groups
    # Input: a convolution with the kernel reversed in time and with the inputs and outputs of each group swapped.
    swapped = jnp.transpose(kernel.reshape(width, group_inputs, groups, group_outputs), (0, 3, 2, 1))
    swapped = jnp.flip(swapped, axis=0).reshape(width, group_outputs, groups * group_inputs)
    x_gradient = _convolve(gradient, swapped, groups, ((width - 1) // 2, width // 2))
    return x_gradient, _kernel_gradient(x, gradient, width, groups)


def _kernel_gradient(x: Array, gradient: Array, width: int, groups: int) -> Array:
    """The gradient of the kernel `[width, group_inputs, outputs]`: one product for each group.

    Rows are laid end to end with `width - 1` zero frames between them, so that tap k is the product, over one long
    axis, of the gradient with the input shifted by k. A shift of `a * near + b` is one of the input by `a * near` and
    one of the gradient by `-b`: with the inputs at all `a` side by side as channels, and the gradients at all `b`, one
    product has all taps. Products of 48 by 48 channels a tap would be too small to keep a processor busy.
    """
    batch, frames, features = x.shape
    near = max(divisor for divisor in range(1, _NEAR_TAPS + 1) if width % divisor == 0)
    far = width // near
    steps = batch * (frames + width - 1) + near - 1

    def lay_out(values: Array, before: int, after: int) -> Array:
        padded = jnp.pad(values, ((0, 0), (before, after), (0, 0)))
        padded = padded.reshape(batch * (frames + width - 1), groups, -1)
        return jnp.transpose(padded, (1, 0, 2))  # [group, step, channel]

    inputs = jnp.pad(lay_out(x, width // 2, (width - 1) // 2), ((0, 0), (0, width - 1), (0, 0)))
    gradient = jnp.pad(lay_out(gradient, 0, width - 1), ((0, 0), (near - 1, near - 1), (0, 0)))

    def taps(group: tuple[Array, Array]) -> Array:
        inputs, gradient = group
        inputs = jnp.concatenate([inputs[near * a : near * a + steps] for a in range(far)], axis=1)
        gradient = jnp.concatenate([gradient[near - 1 - b : near - 1 - b + steps] for b in range(near)], axis=1)
        return jnp.einsum("ti,to->io", inputs, gradient, preferred_element_type=jnp.float32)

    kernel = jax.lax.map(taps, (inputs, gradient))
    kernel = kernel.reshape(groups, far, features // groups, near, -1)
    return jnp.transpose(kernel, (1, 3, 2, 0, 4)).reshape(width, features // groups, -1)


grouped_convolution.defvjp(_forward, _backward)


def partitioned_convolution(
    x: Float[Array, "batch frames inputs"], kernel: Float[Array, "width group_inputs outputs"], groups: int
) -> Float[Array, "batch frames outputs"]:
    """`grouped_convolution`, each device on its own rows when a mesh of several devices is set (`jax.set_mesh`).

    The rows are split over those of the axes "data" and "fsdp" that the mesh has as Auto axes, if their number divides;
    the kernel is the same everywhere, and its gradient is summed over them.
    """
    axes = tuple(batch_axes())
    devices = math.prod(batch_axes().values())
    if devices == 1 or x.shape[0] % devices:
        return grouped_convolution(x, kernel, groups)

    def on_each_device(x: Array, kernel: Array) -> Array:
        # Marking the kernel as different on each device makes the transpose sum its gradient over the devices.
        return grouped_convolution(x, jax.lax.pcast(kernel, axes, to="varying"), groups)

    rows = PartitionSpec(axes)
    split = jax.shard_map(on_each_device, in_specs=(rows, PartitionSpec()), out_specs=rows, axis_names=set(axes))
    return split(x, kernel)


class PositionalConvolution(nnx.Module):
    """Relative positions by a grouped convolution with weight norm (Salimans & Kingma 2016) over all but the taps."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, features = config.num_conv_pos_embeddings, config.hidden_size
        shape = (width, features // config.num_conv_pos_embedding_groups, features)
        normal = jax.nn.initializers.normal(2.0 * (1.0 / (width * features)) ** 0.5)
        direction = normal(rngs.params(), shape, jnp.float32)
        self.weight_g = nnx.Param(_norm(direction))
        self.weight_v = nnx.Param(direction)
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "batch frames features"]) -> Float[Array, "batch frames features"]:
        """What is added to each frame; frames past a row's length must be 0."""
        direction = self.weight_v[...]
        kernel = self.weight_g[...] * direction / _norm(direction)
        groups = self.config.num_conv_pos_embedding_groups
        y = partitioned_convolution(x.astype(self.dtype), kernel, groups)
        return activate(self.config.feat_extract_activation, y + spread(self.bias[...], y.shape, y.dtype))


def _norm(direction: Float[Array, "width inputs outputs"]) -> Float[Array, "width 1 1"]:
    """The Euclidean norm of each tap's matrix."""
    return jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2), keepdims=True))
