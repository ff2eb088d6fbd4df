"""Bytes that a compiled program moves to and from main memory, estimated from its text.

Every instruction that is no part of a fusion reads its operands and writes its result, as often as its loop runs.
Arrays count as XLA lays them out, rounded up to whole tiles (a TPU's are 8 x 128 and more); those that XLA keeps in a
faster memory (VMEM, written `S(1)`) count nothing. Of an operand that a fusion only slices, the slices count; of a
result that it updates in place, the update.
"""

import math
import re

from xtremes_jax.planning.hlo import Instruction, Program

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "iota", "partition-id", "replica-id", "async-start", "async-update",
}  # fmt: skip
"""Opcodes that move nothing themselves."""
_BUFFER = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([\d,]*)((?::[^}]*)?)\})?")


def moved_bytes(program: Program) -> float:
    """Bytes read from and written to main memory in one execution on one device."""
    inside = _fused(program)
    return sum(
        times * instruction_bytes(instruction, program)
        for instruction, times in program.instructions()
        if instruction.computation not in inside
    )


def instruction_bytes(instruction: Instruction, program: Program) -> float:
    """Bytes that one execution of an instruction moves."""
    if (
        instruction.opcode in _FREE
        or instruction.opcode.endswith("-done")
        or "AllocateBuffer" in instruction.attributes
    ):
        return 0.0
    shapes = {other.name: other.shape for other in program.computations[instruction.computation]}
    operands = [shapes.get(name, "") for name in instruction.operands]
    if instruction.opcode.endswith("-start"):
        return float(sum(map(buffer_bytes, operands)))
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2.0 * buffer_bytes(instruction.shape)
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * buffer_bytes(operands[1])
    if instruction.opcode != "fusion":
        return float(buffer_bytes(instruction.shape) + sum(map(buffer_bytes, operands)))
    read, written = _fusion(program, instruction, operands)
    return read + (buffer_bytes(instruction.shape) if written is None else written)


def buffer_bytes(shape: str) -> int:
    """Bytes in main memory of a shape as XLA prints it, with its tiles; of a tuple, of all its arrays."""
    total = 0
    for dtype, sizes, order, layout in _BUFFER.findall(shape):
        if re.search(r"S\([1-9]\d*\)", layout):
            continue
        dimensions = [int(size) for size in sizes.split(",") if size]
        minor_first = [dimensions[int(axis)] for axis in order.split(",") if axis] or dimensions[::-1]
        if tile := re.search(r"T\(([\d,]+)\)", layout):
            for place, size in enumerate(reversed([int(size) for size in tile[1].split(",")])):
                if place < len(minor_first):
                    minor_first[place] = math.ceil(minor_first[place] / size) * size
        digits = re.search(r"\d+", dtype)
        total += math.prod(minor_first) * (int(digits[0]) if digits else 8 * (dtype == "pred")) // 8
    return total


def _fused(program: Program) -> set[str]:
    """Computations that run inside an instruction: of fusions, and what reductions and sorts apply."""
    inside: set[str] = set()
    for name, computation in program.computations.items():
        for instruction in computation:
            called = set(re.findall(r"to_apply=%?([\w.\-]+)", instruction.attributes))
            if instruction.opcode == "fusion" or name in inside:
                called |= set(re.findall(r"calls=%?([\w.\-]+)", instruction.attributes))
            inside |= called if instruction.opcode != "call" else set()
    return inside


def _fusion(program: Program, fusion: Instruction, operands: list[str]) -> tuple[float, float | None]:
    """Bytes that a fusion reads, and those that it writes if it updates its result in place."""
    computation = _body(program, fusion)
    users: dict[str, list[Instruction]] = {}
    for instruction in computation:
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    read = 0.0
    for instruction in computation:
        if instruction.opcode != "parameter":
            continue
        shape = operands[int(instruction.literal)] if int(instruction.literal) < len(operands) else instruction.shape
        if full := buffer_bytes(shape):
            uses = [_use(program, user, place, full) for user, place in _through_bitcasts(instruction, users)]
            read += min(full, sum(uses)) if uses else full
    root = computation[-1] if computation else None
    if root is not None and root.opcode == "fusion":
        return read, _fusion(program, root, ["" for _ in root.operands])[1]
    if root is not None and root.opcode == "dynamic-update-slice":
        update = next((i for i in computation if i.name == root.operands[1]), None)
        if update is not None:
            return read, float(buffer_bytes(_in_main_memory(update.shape)))
    return read, None


def _body(program: Program, fusion: Instruction) -> list[Instruction]:
    return program.computations.get(re.search(r"calls=%?([\w.\-]+)", fusion.attributes)[1], [])


def _use(program: Program, user: Instruction, place: int, full: int) -> float:
    """Bytes that one use inside a fusion needs of an operand of `full` bytes."""
    if user.opcode == "dynamic-slice" and place == 0:
        return float(buffer_bytes(_in_main_memory(user.shape)))
    if user.opcode == "dynamic-update-slice" and place == 0:
        return 0.0  # what is updated in place is not read
    if user.opcode == "fusion":  # a fusion inside: what it needs of this operand
        only = ["" for _ in user.operands]
        only[place] = f"u8[{full}]{{0}}"
        return _fusion(program, user, only)[0]
    return float(full)


def _through_bitcasts(instruction: Instruction, users: dict[str, list[Instruction]]) -> list[tuple[Instruction, int]]:
    """What uses a result, and as which of its operands."""
    found: list[tuple[Instruction, int]] = []
    for user in users.get(instruction.name, []):
        if user.opcode == "bitcast":
            found += _through_bitcasts(user, users)
        else:
            found.append((user, user.operands.index(instruction.name)))
    return found


def _in_main_memory(shape: str) -> str:
    return re.sub(r"S\(\d+\)", "", shape)
