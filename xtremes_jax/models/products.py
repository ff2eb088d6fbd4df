"""Products with parameters: computed in any dtype, with parameter gradients that are summed in float32.

Differentiated as usual, a product in half precision gives its parameter's gradient in half precision too, and that is
what devices and micro-batches then add up: whether float16 overflows would depend on how a batch was split. Here the
sum over rows and frames is accumulated in float32 and stays so.

Where devices share a parameter (`partitioning.whole`) it is gathered for the product, in the compute dtype, and again
for the gradient: what is kept in between is each device's piece.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xtremes_jax.models.partitioning import whole
from xtremes_jax.models.platform import platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(
    x: Float[Array, "*rows inputs"], kernel: Float[Array, "inputs outputs"], output_dtype: Any
) -> Float[Array, "*rows outputs"]:
    """`x @ kernel`, the float32 kernel cast to the dtype of `x`; sums leave the product in `output_dtype`."""
    return jnp.matmul(x, whole(kernel.astype(x.dtype)), preferred_element_type=output_dtype)


def _multiply_forward(x: Array, kernel: Array, output_dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return multiply(x, kernel, output_dtype), (x, kernel)


def _multiply_backward(output_dtype: Any, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    return jnp.matmul(gradient, whole(kernel.astype(x.dtype)).T), _summed_product(x, gradient)


multiply.defvjp(_multiply_forward, _multiply_backward)


def _summed_product(x: Float[Array, "*rows inputs"], gradient: Float[Array, "*rows outputs"]) -> Array:
    """The gradient `[inputs, outputs]` of a kernel: products summed over all rows, in float32."""
    if platform() == "cpu":
        # As matrices: XLA's CPU backend would transpose arrays of more axes in memory before it multiplies them.
        # On a TPU it is the reshaping that copies, as rows of frames are not whole tiles.
        x, gradient = (array.reshape(-1, array.shape[-1]) for array in (x, gradient))
    rows = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def compare(
    x: Float[Array, "*rows features"], table: Float[Array, "vocabulary features"]
) -> Float[Array, "*rows vocabulary"]:
    """`x @ table.T` in float32, the float32 table cast to the dtype of `x`: the logits of a tied embedding.

    Not `multiply` with a transposed table, whose gradient in half precision does not compile on CPUs.
    """
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, whole(table.astype(x.dtype)), axes, preferred_element_type=jnp.float32)


def _compare_forward(x: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
    return compare(x, table), (x, table)


def _compare_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, table = saved
    gradient = gradient.astype(x.dtype)
    return jnp.matmul(gradient, whole(table.astype(x.dtype))), _summed_product(gradient, x)


compare.defvjp(_compare_forward, _compare_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "batch steps inputs"], kernel: Float[Array, "width inputs outputs"], stride: int
) -> Float[Array, "batch frames outputs"]:
    """A strided convolution without padding, in the dtype of `x`: `floor((steps - width) / stride) + 1` frames."""
    return _convolution(x, whole(kernel.astype(x.dtype)), stride)


def _convolution(x: Array, kernel: Array, stride: int) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


def _convolve_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    transpose = jax.linear_transpose(lambda x: _convolution(x, whole(kernel.astype(x.dtype)), stride), x)
    return transpose(gradient)[0], _kernel_gradient(x, gradient, kernel.shape[0], stride)


def _kernel_gradient(
    x: Float[Array, "batch steps inputs"], gradient: Float[Array, "batch frames outputs"], width: int, stride: int
) -> Float[Array, "width inputs outputs"]:
    """The gradient of a convolution's kernel, summed over rows and frames in float32."""
    last = stride * (gradient.shape[1] - 1)
    if platform() == "cpu":
        # One product of the output's gradient with the inputs that each frame saw; a CPU convolves slowly this way.
        seen = jnp.concatenate([x[:, tap : tap + last + 1 : stride] for tap in range(width)], axis=2)
        return _summed_product(seen, gradient).reshape(width, x.shape[2], gradient.shape[2])
    # As a convolution of the inputs with the gradient, which takes the place of the kernel: nothing is copied.
    return jax.lax.conv_general_dilated(
        x[:, : last + width],
        gradient,
        (1,),
        "VALID",
        rhs_dilation=(stride,),
        dimension_numbers=("CWN", "IWO", "WNC"),
        preferred_element_type=jnp.float32,
    )


convolve.defvjp(_convolve_forward, _convolve_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def spread(vector: Float[Array, " features"], shape: tuple[int, ...], dtype: Any) -> Float[Array, "*rows features"]:
    """A float32 parameter vector in `dtype`, repeated over the leading axes of `shape`: a bias, or a mask's filling."""
    return jnp.broadcast_to(whole(vector.astype(dtype)), shape)


def _spread_forward(vector: Array, shape: tuple[int, ...], dtype: Any) -> tuple[Array, None]:
    return spread(vector, shape, dtype), None


def _spread_backward(shape: tuple[int, ...], dtype: Any, saved: None, gradient: Array) -> tuple[Array]:
    return (jnp.sum(gradient, axis=tuple(range(len(shape) - 1)), dtype=jnp.float32),)


spread.defvjp(_spread_forward, _spread_backward)
