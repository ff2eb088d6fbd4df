"""A global batch worked off in micro-batches: how it is cut, put together again, and summed over."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from xtremes_jax.batch import Batch
from xtremes_jax.models.partitioning import batch_axes


def split_micro_batches(batch: Batch, count: int) -> Batch:
    """`[batch, ...]` to `[count, batch / count, ...]`, each micro-batch holding every count-th row.

    Taking every count-th row leaves each device's rows on that device; contiguous slices would have to travel.
    """
    return jax.tree.map(lambda a: jnp.swapaxes(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 0, 1), batch)


def join_micro_batches(parts: Shaped[Array, "count rows *rest"]) -> Shaped[Array, " batch *rest"]:
    """The inverse of `split_micro_batches` for what a model gave for each row."""
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])


def accumulate(function: Callable, shared: Any, parts: Any) -> Any:
    """Sum of `function(shared, micro-batch)`, a pytree of float32 arrays, over the micro-batches.

    On several devices (`jax.set_mesh`) each adds up its own rows' share, and the devices' sums are added once at the
    end: left to itself, XLA adds them after every micro-batch. So `function` must be a sum over rows. The axis that
    splits parameters (FSDP) is left to XLA, which has to meet there every time: nobody holds a whole gradient.

    Args:
        function: sees nothing traced but its arguments.
        shared: a pytree that every micro-batch gets, parameters among it.
        parts: a pytree of arrays `[count, rows, ...]`.
    """
    sizes = {name: size for name, size in batch_axes().items() if size > 1}
    axes = tuple(name for name in sizes if name == "data")
    rows = {leaf.shape[1] for leaf in jax.tree.leaves(parts)}
    if not axes or any(count % math.prod(sizes.values()) for count in rows):
        return _sum(function, shared, parts)

    def on_each_device(shared: Any, parts: Any) -> Any:
        return jax.lax.psum(_sum(function, shared, parts), axes)

    split = jax.shard_map(
        on_each_device,
        in_specs=(PartitionSpec(), PartitionSpec(None, axes)),
        out_specs=PartitionSpec(),
        axis_names=set(axes),
        check_vma=False,
    )
    return split(shared, parts)


def _sum(function: Callable, shared: Any, parts: Any) -> Any:
    first = jax.tree.map(lambda array: array[0], parts)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, shared, first))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(shared, part)), None

    return jax.lax.scan(add, zero, parts)[0]
