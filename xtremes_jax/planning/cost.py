"""What a compiled program costs on one device: memory, FLOPs, bytes moved and sent, and how long it may take."""

import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from xtremes_jax.planning.hlo import Program
from xtremes_jax.planning.topology import Chip, Target
from xtremes_jax.planning.traffic import moved_bytes

UTILISATION = 0.5
"""Share of the peak rate of products that a step is taken to reach: an assumption."""
LINK_SHARE = 0.5
"""Share of the bandwidth of all links together that sums and gathers are taken to reach: an assumption."""

_UNOPTIMISED = {"xla_backend_optimization_level": 0}
"""For CPUs, where LLVM takes most of the time: XLA's own program, and where its arrays lie, are the same without."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class ProgramCost:
    """Of one execution on one device; None where the program does not fit, so that XLA has made none."""

    needed: int | None
    """Bytes of memory at the peak: arguments, results that do not take an argument's place, and temporary memory. Where
    it does not fit, what XLA says that it would need, if it says so."""
    temporary: int | None
    """Bytes of them for activations, gradients and all that is computed on the way."""
    refused: str | None
    """What the compiler says where the program does not fit into the device's memory."""
    flops: float | None
    """Of matrix products and convolutions, with what is computed again in the backward pass; loops multiplied out."""
    moved: float | None
    """Bytes to and from main memory; None where the program that was compiled is another device's."""
    sent: float | None
    """Bytes that go to other devices."""
    collectives: int | None
    """Operations that send them, as often as they run."""
    compile_seconds: float
    code: int = 0
    """Bytes of the program itself; counted for TPUs alone, as what is compiled for GPUs is a program for CPUs."""

    def seconds(self, chip: Chip, precision: str) -> float | None:
        """Estimated time of one execution: products at `UTILISATION` of the peak rate or memory traffic at its peak,
        whichever takes longer, and then what is sent, at `LINK_SHARE` of the links' rate, with nothing at once.

        Args:
            chip: the device.
            precision: of products, a key of `chip.flops_per_s`.
        """
        if self.flops is None:
            return None
        by_flops = self.flops / (chip.flops_per_s[precision] * UTILISATION)
        by_bytes = self.moved / chip.bytes_per_s if self.moved is not None and chip.bytes_per_s else 0.0
        return max(by_flops, by_bytes) + self.sent / (chip.sent_bytes_per_s * LINK_SHARE)


def compile_and_measure(lowered: jax.stages.Lowered, target: Target) -> ProgramCost:
    """Compiles a program for a target's devices and reads its cost off it."""
    begun = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=None if target.platform == "tpu" else _UNOPTIMISED)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed, sentence = _needed(str(error))
        seconds = time.perf_counter() - begun
        return ProgramCost(needed, None, sentence, None, None, None, None, seconds)
    seconds = time.perf_counter() - begun
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    collectives = program.collectives()
    return ProgramCost(
        needed=memory.argument_size_in_bytes + results + memory.temp_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        refused=None,
        flops=program.product_flops(),
        moved=None if target.is_proxy else moved_bytes(program),
        sent=float(sum(collective.sent for collective in collectives)),
        collectives=sum(collective.times for collective in collectives),
        compile_seconds=seconds,
        code=memory.generated_code_size_in_bytes if target.platform == "tpu" else 0,
    )


def _needed(message: str) -> tuple[int | None, str]:
    """Bytes that XLA says it would need, and the line in which it says so."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in lines:
        if found := re.search(r"(?:[Uu]sed |required for [\w ]*\()([\d.]+)([KMGT]?)", line):
            return int(float(found[1]) * _UNITS[found[2]]), line
    return None, lines[0] if lines else message


def device_bytes(tree: Any) -> int:
    """Bytes that each device holds of a pytree of arrays, or of `jax.ShapeDtypeStruct` with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(_size(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
