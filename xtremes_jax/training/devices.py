"""What is set in JAX before the first array is made."""

import functools
from pathlib import Path

import jax

from xtremes_jax.models.platform import platform
from xtremes_jax.training.compilation_cache import share_compilation_cache, use_compilation_cache

_CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", "xla_cpu_prefer_vector_width": 512}


def configure_jax(
    *, use_cpu: bool, tf32: bool | None, compilation_cache_dir: str | None, default_cache_root: Path
) -> None:
    """Chooses the platform, the precision of float32 products and the folder of compiled programs.

    Args:
        use_cpu: run on the CPU even where there is an accelerator.
        tf32: multiply float32 matrices in TensorFloat-32 (True) or in full float32 (False); None leaves JAX's choice.
        compilation_cache_dir: where compiled programs are kept between runs; "none" keeps none, None chooses.
        default_cache_root: the folder of caches to choose a place in.
    """
    if use_cpu:
        jax.config.update("jax_platforms", "cpu")
    if tf32 is not None:
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32 else "float32")
    use_compilation_cache(compilation_cache_dir, default_cache_root)
    share_compilation_cache()


def compiler_options() -> dict[str, str | int] | None:
    """What steps are compiled with, for `jax.jit`; None leaves all to XLA.

    On CPUs XLA orders a program for many operations at a time, which keeps more arrays at once; a step's operations use
    all cores by themselves, one after the other. And it uses half of the width of AVX-512 unless told otherwise.
    """
    return _cpu_options() if platform() == "cpu" else None


@functools.cache
def _cpu_options() -> dict[str, str | int] | None:
    try:
        jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None  # an XLA that does not have this option
    return _CPU_OPTIONS


def describe_devices() -> str:
    """Such as "8 x NVIDIA H200" or "1 x cpu"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
