"""The device mesh and where parameters, optimizer state and batches lie on it."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xtremes_jax.errors import InputError
from xtremes_jax.models.partitioning import BATCH_AXES

SMALLEST_SHARDED = 2**16
"""Parameters with fewer elements are kept whole on every device: gathering them would cost more than it saves."""


def make_mesh(fsdp_devices: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh.

    Args:
        fsdp_devices: over how many devices each large parameter is split (fully sharded data parallelism).
        devices: of the mesh; all devices of all processes where absent.

    Raises:
        InputError: the number of devices is not a multiple of `fsdp_devices`.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp_devices < 1 or count % fsdp_devices:
        raise InputError(f"--fsdp_devices {fsdp_devices} does not divide the {count} devices of this run.")
    kinds = (AxisType.Auto,) * len(BATCH_AXES)
    # Not jax.make_mesh, which refuses to split a TPU slice's own axes: 8 devices of a 4x4 slice, for example.
    shape = (count // fsdp_devices, fsdp_devices)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, BATCH_AXES, axis_types=kinds)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch split over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def array_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Splits the longest axis that the fsdp axis divides; small arrays, and those without such an axis, stay whole."""
    ways = mesh.shape["fsdp"]
    if ways == 1 or int(np.prod(shape)) < SMALLEST_SHARDED:
        return replicated(mesh)
    axes = [axis for axis in range(len(shape)) if shape[axis] % ways == 0]
    if not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    spec = [None] * len(shape)
    spec[longest] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))


def place(value: np.ndarray | np.generic, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds on the devices of all of them; none gets more than its part."""
    value = np.asarray(value)  # a scalar of NumPy's is no array
    return jax.make_array_from_callback(value.shape, sharding, lambda part: value[part])


def to_host(array: jax.Array) -> np.ndarray:
    """The whole array, in every process; all of them have to ask."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        array = _gathering(array.sharding.mesh)(array)
    return np.asarray(jax.device_get(array))


@functools.cache
def _gathering(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """What makes an array whole in every process; one function, so that each shape is compiled once in a run."""
    return jax.jit(lambda part: part, out_shardings=replicated(mesh))


def tree_sharding(mesh: Mesh, tree):
    """`array_sharding` of every array of a pytree: optimizer moments land exactly where their parameters do."""
    return jax.tree.map(lambda leaf: array_sharding(mesh, leaf.shape), tree)
