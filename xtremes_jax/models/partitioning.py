"""How parameters and rows lie on the devices of the mesh that is set (`jax.set_mesh`), where the model has a say in it.

Left to itself, XLA works with the pieces into which fully sharded data parallelism has cut a kernel, and sends the
activations of all devices around instead of the kernel.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

BATCH_AXES = ("data", "fsdp")
"""Names of the mesh axes that the rows of a batch are spread over: fsdp devices also work on rows of their own."""


def batch_axes() -> dict[str, int]:
    """Those of `BATCH_AXES` that the mesh has and XLA partitions over (Auto axes), with their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if name in BATCH_AXES and kind == AxisType.Auto
    }


def whole(parameter: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The same array, in one piece on every device: gathered there, in its own dtype, if the fsdp axis splits it."""
    if batch_axes().get("fsdp", 1) == 1:
        return parameter
    # Two constraints, or XLA would take the second for what leads up to it too: it would gather before a cast to half
    # precision, and keep every layer's whole kernel for the backward pass.
    as_it_lies = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * parameter.ndim)
    parameter = jax.lax.with_sharding_constraint(parameter, as_it_lies)
    return jax.lax.with_sharding_constraint(parameter, PartitionSpec())


def on_own_rows(function: Callable[..., Any], *arrays: Array) -> Any:
    """`function(*arrays)`, each device on its own rows: for what XLA does not split over the rows by itself.

    Where no mesh of several devices is set, or they do not divide the rows, it is called as it is. Not to be
    differentiated through: for use inside functions with a gradient of their own.

    Args:
        function: gives arrays with the rows first, each of which depends on the same row of its arguments alone.
        arrays: rows first.
    """
    axes = batch_axes()
    devices = math.prod(axes.values())
    if devices == 1 or arrays[0].shape[0] % devices:
        return function(*arrays)
    rows = PartitionSpec(tuple(axes))
    split = jax.shard_map(
        function, in_specs=(rows,) * len(arrays), out_specs=rows, axis_names=set(axes), check_vma=False
    )
    return split(*arrays)
