"""A global batch worked off in micro-batches: how it is cut, put together again, and summed over."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from xtremes_jax.batch import Batch


def split_micro_batches(batch: Batch, count: int) -> Batch:
    """`[batch, ...]` to `[count, batch / count, ...]`, each micro-batch holding every count-th row.

    Taking every count-th row leaves each device's rows on that device; contiguous slices would have to travel.
    """
    return jax.tree.map(lambda a: jnp.swapaxes(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 0, 1), batch)


def join_micro_batches(parts: Shaped[Array, "count rows features"]) -> Shaped[Array, "batch features"]:
    """The inverse of `split_micro_batches` for what a model gave for each row."""
    return jnp.swapaxes(parts, 0, 1).reshape(-1, parts.shape[-1])


def accumulate(function: Callable, parts):
    """Sum of `function` (micro-batch -> pytree of float32 arrays) over the micro-batches, `[count, ...]` each array."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda array: array[0], parts))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None), zero, parts)
    return total
