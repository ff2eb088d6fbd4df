"""Hardware that a run is planned for: `v5e:2x4`, `h100:8`, `cpu:8` -> devices to compile for, and what they can do."""

import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.tasks import nearest

GIB = 2**30
_MOST_CPUS = 64
PRECISIONS = ("bfloat16", "float16", "default", "tensorfloat32", "float32")
"""How products are computed: the keys of `Chip.flops_per_s`."""


@dataclass(frozen=True)
class Chip:
    """What one device has and can do, as its maker says."""

    kind: str
    flops_per_s: dict[str, float]
    """Peak rate of products by precision: "bfloat16", "float16", and of float32 arrays "default" (as JAX multiplies
    them unless told otherwise), "tensorfloat32" and "float32"."""
    bytes_per_s: float | None
    """To and from main memory; None where the compiled program does not tell what the device would move."""
    memory: int
    """Bytes of main memory that programs may use."""
    sent_bytes_per_s: float
    """That a device sends to the others of its slice or machine, over all its links together."""
    source: str
    """Of these figures."""


def _tpu(name: str, flops: float, memory_bytes_per_s: float, memory: float, sent: float, source: str = "") -> Chip:
    # In float32, products take one pass of bfloat16 by default, three for "tensorfloat32" and six for "float32".
    rates = dict(zip(PRECISIONS, (flops, flops, flops, flops / 3, flops / 6), strict=True))
    source = f"cloud.google.com/tpu/docs/{name}{source}; memory as XLA has it"
    return Chip(f"TPU {name}", rates, memory_bytes_per_s, int(memory * GIB), sent, source)


def _gpu(name: str, half: float, tf32: float, full: float, gib: int, sent: float, has_bfloat16: bool = True) -> Chip:
    # Where there are no products of bfloat16, XLA computes them in float32.
    rates = dict(zip(PRECISIONS, (half if has_bfloat16 else full, half, tf32, tf32, full), strict=True))
    # What is compiled is a program for CPUs, which moves other bytes.
    source = f"NVIDIA's data sheet; of {gib} GiB JAX takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION is set"
    return Chip(f"NVIDIA {name}", rates, None, gib * GIB * 3 // 4, sent, source)


TPUS = {
    "v4": _tpu("v4", 275e12, 1.2e12, 30.75, 300e9, ", and 6 links of 50 GB/s"),
    "v5e": _tpu("v5e", 197e12, 0.819e12, 15.75, 200e9),
    "v5p": _tpu("v5p", 459e12, 2.765e12, 95.74, 600e9),
    "v6e": _tpu("v6e", 918e12, 1.638e12, 31.25, 400e9),
}
"""Links send half of what Google calls the bidirectional bandwidth; memory is what XLA says to be available when a
program needs too much (libtpu 0.0.42)."""
GPUS = {
    "v100": _gpu("V100 SXM2 32 GB", 125e12, 15.7e12, 15.7e12, 32, 150e9, has_bfloat16=False),
    "a100": _gpu("A100 SXM 80 GB", 312e12, 156e12, 19.5e12, 80, 300e9),
    "h100": _gpu("H100 SXM 80 GB", 989e12, 494e12, 67e12, 80, 450e9),
    "h200": _gpu("H200 SXM 141 GB", 989e12, 494e12, 67e12, 140, 450e9),
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SLICES = {"v5e": _FLAT, "v6e": _FLAT, "v4": _SOLID, "v5p": _SOLID}
"""Shapes that each TPU's slices have, of those that Google's documentation lists."""
CHIPS_OF_A_HOST = {"v4": 4, "v5p": 4, "v5e": 8, "v6e": 8}
"""At most: v5e and v6e have hosts of fewer too."""
NAMES = (*TPUS, "gpu", *GPUS, "cpu")


@dataclass(frozen=True)
class Target:
    """The devices of a plan."""

    name: str
    """As it was given."""
    platform: str
    """One of "tpu", "gpu" or "cpu": what the programs are written for."""
    chip: Chip
    devices: Sequence[Any]
    """To make a mesh of. Nobody need hold them; for GPUs they are simulated CPU devices."""
    processes: int = 1
    """That a run on these devices has at least: one on each host of a TPU slice."""

    @property
    def is_proxy(self) -> bool:
        """Whether the programs are compiled for other devices than the plan is of."""
        return self.platform == "gpu"


def find_target(name: str) -> Target:
    """The devices that `--topology` names. Call it before anything else asks JAX for its devices.

    Raises:
        InputError: there is no such hardware or no such slice of it, libtpu is missing or in use, or this process has
            begun with fewer simulated devices.
    """
    kind, _, size = name.partition(":")
    if kind not in NAMES or not size:
        raise InputError(
            f"--topology {name} is not known{nearest(kind, NAMES) if kind not in NAMES else '.'} Give a kind of device "
            f"and a size: {', '.join(f'{tpu}:{SLICES[tpu][2]}' for tpu in TPUS)}, gpu:8 (an H100), "
            f"{', '.join(f'{gpu}:8' for gpu in GPUS)}, cpu:8."
        )
    if kind in TPUS:
        devices = _tpu_devices(name, kind, size)
        return Target(name, "tpu", TPUS[kind], devices, processes=-(-len(devices) // CHIPS_OF_A_HOST[kind]))
    count = int(size) if re.fullmatch("[0-9]{1,4}", size) else 0
    if not 1 <= count <= _MOST_CPUS:
        raise InputError(f"--topology {name}: {size} is no number of devices. Give one from 1 to {_MOST_CPUS}.")
    devices = _cpu_devices(name, count)
    if kind == "cpu":
        return Target(name, "cpu", _this_machine(count), devices)
    return Target(name, "gpu", GPUS["h100" if kind == "gpu" else kind], devices)


def _tpu_devices(name: str, kind: str, size: str) -> Sequence[Any]:
    if size not in SLICES[kind]:
        raise InputError(
            f"--topology {name}: there is no slice {size} of {kind}. Choose one of {', '.join(SLICES[kind])}."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology {name} is compiled by libtpu, which is not installed. It needs no TPU: "
            'pip install "jax[tpu]" (or, of this package, pip install -e ".[tpu-plan]").'
        )
    jax.config.update("jax_platforms", "cpu")
    # Nothing is asked of a metadata server that is not there.
    for variable, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # The two cores of a v4 chip are one device to JAX.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if size == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise InputError(
                f"--topology {name}: another process of this machine uses libtpu, which takes one at a time. Wait "
                "until it ends; if there is none, delete /tmp/libtpu_lockfile."
            ) from error
        raise InputError(f"--topology {name}: libtpu does not know it: {error}") from error


def _cpu_devices(name: str, count: int) -> Sequence[Any]:
    """Devices of this process, which are simulated."""
    jax.config.update("jax_platforms", "cpu")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:  # JAX has begun
            pass
    found = jax.devices("cpu")
    if len(found) < count:
        raise InputError(
            f"--topology {name}: this process has {len(found)} simulated devices. Leave "
            "--xla_force_host_platform_device_count out of XLA_FLAGS, or raise it."
        )
    return found[:count]


def _this_machine(count: int) -> Chip:
    """A simulated device's share of this machine, measured."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rate, moved = (found / count for found in _measured_rates())
    return Chip(
        f"one of {count} simulated CPU devices", dict.fromkeys(PRECISIONS, rate),
        moved, memory // count, moved / 2, "measured on this machine just now, and shared by all devices",
    )  # fmt: skip


def _measured_rates() -> tuple[float, float]:
    """Floating-point operations a second of a matrix product, and bytes a second of a copy (read and written)."""
    square = np.ones((2048, 2048), np.float32)
    wide = np.ones(2**26, np.float32)
    product = min(_seconds(lambda: square @ square) for _ in range(3))
    copy = min(_seconds(wide.copy) for _ in range(3))
    return 2 * math.prod(square.shape) * square.shape[0] / product, 2 * wide.nbytes / copy


def _seconds(function: Any) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun
