"""Reads compiled XLA programs as text: what they send between devices, and how much they multiply.

XLA's own cost analysis takes the body of a loop once. Here every instruction counts as often as its loop runs, by the
trip counts that XLA writes into the text, so that a scan over layers costs all its layers.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""Opcodes that send data between devices. An asynchronous one is counted where it starts."""

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class ArrayShape(NamedTuple):
    """An array's element type, by XLA's name, and its dimensions on one device."""

    dtype: str
    dimensions: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The product of the dimensions."""
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        """Without padding: XLA may lay an array out in more."""
        bits = _BITS.get(self.dtype) or (int(re.search(r"\d+", self.dtype)[0]) if self.dtype != "token" else 0)
        return self.elements * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dimensions))}]"


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    arrays: tuple[ArrayShape, ...]
    """Of the result; several where it is a tuple."""
    opcode: str
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    literal: str
    """What stands between the parentheses: the value of a constant."""
    attributes: str
    """What follows them."""
    computation: str
    shape: str
    """The result's, as it is printed: with its layout."""

    @property
    def source(self) -> str:
        """The JAX operation that it was made from, as XLA's metadata tell."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Collective(NamedTuple):
    """An instruction that sends data between devices."""

    kind: str
    """One of `COLLECTIVES`."""
    arrays: tuple[ArrayShape, ...]
    """Of the result, on one device."""
    group: int
    """Devices that take part together."""
    times: int
    """How often it runs in one execution of the program."""
    source: str

    @property
    def payload(self) -> int:
        """Bytes of the whole arrays, in all executions: what is summed, or what is there once it is gathered."""
        size = sum(array.bytes for array in self.arrays) * self.times
        return size * self.group if self.kind == "reduce-scatter" else size

    @property
    def sent(self) -> float:
        """Bytes that each device sends on a ring: (n - 1) / n of the payload, twice for a sum that all devices get."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.payload)
        return self.payload * (self.group - 1) / self.group * (2 if self.kind == "all-reduce" else 1)

    def __str__(self) -> str:
        arrays = ", ".join(map(str, self.arrays[:3])) + (f", … ({len(self.arrays)} arrays)" * (len(self.arrays) > 3))
        return f"{self.kind} of {arrays} over {self.group} devices x{self.times} ({self.source or 'no source'})"


class Program:
    """A compiled program: `Program(compiled.as_text())`."""

    def __init__(self, text: str):
        header = text.split("\n", 1)[0]
        counts = [int(found) for found in re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)]
        self.devices = math.prod(counts)
        self.computations: dict[str, list[Instruction]] = {}
        entry = ""
        current: list[Instruction] | None = None
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current = self.computations.setdefault(found[2], [])
                entry = found[2] if found[1] else entry
                name = found[2]
            elif current is not None and (found := _INSTRUCTION.match(line)):
                current.append(_instruction(found[1], found[2], name))
        if not entry:
            raise ValueError("This is no text of a compiled program: it has no ENTRY computation.")
        self.times = dict.fromkeys(self.computations, 0)
        self._count(entry, 1)

    def _count(self, computation: str, times: int) -> None:
        """Adds `times` executions of a computation, and of those that it calls."""
        self.times[computation] += times
        for instruction in self.computations[computation]:
            trips = times * (self._trips(instruction) if instruction.opcode == "while" else 1)
            for name in self._run_by(instruction):
                self._count(name, trips)

    def _run_by(self, instruction: Instruction) -> list[str]:
        """Computations that run when an instruction does: of branches the one that costs most."""
        names = [name for name in _called(instruction) if name in self.computations]
        return [max(names, key=self._cost)] if instruction.opcode == "conditional" and names else names

    def _cost(self, name: str) -> tuple[float, int]:
        """How much a computation multiplies, with those that it calls, and how many instructions it has."""
        computation, flops = self.computations[name], 0.0
        for instruction in computation:
            trips = self._trips(instruction) if instruction.opcode == "while" else 1
            flops += _product_flops(instruction, computation)
            flops += trips * sum(self._cost(called)[0] for called in self._run_by(instruction))
        return flops, len(computation)

    def _trips(self, loop: Instruction) -> int:
        """Rounds of a loop: as XLA says, or (for TPUs it does not) the constant that its counter is compared with."""
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition = self.computations.get(re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1], [])
        compared = [i for i in condition if i.opcode == "compare" and "direction=LT" in i.attributes]
        limits = [i for i in condition if i.opcode == "constant" and compared and i.name in compared[-1].operands]
        return -(-int(limits[0].literal) // self._stride(loop, condition, compared[-1])) if limits else 1

    def _stride(self, loop: Instruction, condition: list[Instruction], compared: Instruction) -> int:
        """By how much a loop's counter grows in a round: XLA unrolls some loops for TPUs and leaves their limit."""
        counter = next((i for i in condition if i.name in compared.operands and i.opcode == "get-tuple-element"), None)
        body = self.computations.get(re.search(r"body=%?([\w.\-]+)", loop.attributes)[1], [])
        if counter is None or not body or body[-1].opcode != "tuple":
            return 1
        place = int(re.search(r"index=(\d+)", counter.attributes)[1])
        known = {instruction.name: instruction for instruction in body}
        grown = known.get(body[-1].operands[place]) if place < len(body[-1].operands) else None
        if grown is None or grown.opcode != "add":
            return 1
        added = [known[name] for name in grown.operands if name in known and known[name].opcode == "constant"]
        return max(1, int(added[0].literal)) if len(added) == 1 else 1

    def instructions(self) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that runs, and how often. Of a conditional's branches the one that multiplies most counts;
        a loop that does not say how often it runs counts as one round."""
        for name, computation in self.computations.items():
            if self.times[name]:
                for instruction in computation:
                    yield instruction, self.times[name]

    def collectives(self) -> list[Collective]:
        """What the program sends between devices, in the program's order. Groups of one device send nothing.

        For TPUs one operation may stand in several places, where it starts and where it goes on: its channel tells. And
        what scatters a sum is written as a fusion of the sum and of the slice that a device keeps.
        """
        found: dict[str, Collective] = {}
        kept = self._kept_slices()
        for instruction, times in self.instructions():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            arrays = instruction.arrays
            if instruction.opcode == "all-gather-start" or kind == "collective-permute" and len(arrays) > 1:
                arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[1:2]
            if slices := kept.get((instruction.computation, instruction.name)):
                kind, arrays = "reduce-scatter", slices
            group = _group_size(instruction.attributes, self.devices)
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if group > 1:
                key = channel[1] if channel else instruction.name
                found.setdefault(key, Collective(kind, arrays, group, times, instruction.source))
        return list(found.values())

    def _kept_slices(self) -> dict[tuple[str, str], tuple[ArrayShape, ...]]:
        """Sums of whose arrays their fusion keeps nothing but slices: computation and name -> the slices."""
        kept = {}
        fused = {name for i, _ in self.instructions() if i.opcode == "fusion" for name in _called(i)}
        for name in fused & self.computations.keys():
            computation = self.computations[name]
            for reduced in (i for i in computation if i.opcode == "all-reduce"):
                arrays = {reduced.name} | {
                    i.name for i in computation if i.opcode == "get-tuple-element" and reduced.name in i.operands
                }
                slices = [i.arrays[0] for i in computation if i.opcode == "dynamic-slice" and i.operands[0] in arrays]
                if len(slices) == len(reduced.arrays):
                    kept[name, reduced.name] = tuple(slices)
        return kept

    def product_flops(self) -> float:
        """Floating-point operations of all matrix products and convolutions on one device, loops multiplied out."""
        return sum(_product_flops(i, self.computations[i.computation]) * times for i, times in self.instructions())


def _instruction(name: str, rest: str, computation: str) -> Instruction:
    """Parses what stands behind `%name = `."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:]
    found = _OPCODE.search(rest)
    if found is None:
        raise ValueError(f"no opcode in the line of %{name}")
    end = _closing(rest, found.end() - 1)
    literal = rest[found.end() : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", literal))
    return Instruction(name, _arrays(shape), found[1], operands, literal, rest[end:], computation, shape)


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]}")


def _arrays(shape: str) -> tuple[ArrayShape, ...]:
    return tuple(
        ArrayShape(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(shape)
    )


def _called(instruction: Instruction) -> list[str]:
    """Computations that run whenever an instruction does (`to_apply` of a reduction too: it has no products)."""
    names = _CALLED.findall(instruction.attributes)
    for found in _BRANCHES.findall(instruction.attributes):
        names += re.findall(r"%?([\w.\-]+)", found)
    return names


def _group_size(attributes: str, devices: int) -> int:
    """Devices in each replica group, from any of the forms that XLA prints."""
    if "source_target_pairs=" in attributes:
        return devices
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\S*mesh\[([^\]]*)\](?:, device_ids=\S+)?\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _product_flops(instruction: Instruction, computation: list[Instruction]) -> float:
    """A multiplication and an addition are two; 0 for anything but products."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    shapes = {other.name: other.arrays[0] for other in computation if other.name in instruction.operands}
    left, right = (shapes[name].dimensions for name in instruction.operands[:2])
    outputs = instruction.arrays[0].elements
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        return 2.0 * outputs * math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
    return 2.0 * outputs * _taps(instruction.attributes, left, right)


def _taps(attributes: str, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Products that are summed into an output of a convolution, the padding's and a dilation's zeros left out.

    Counted axis by axis over all places of the output, as a mean.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    sides, kernel = labels[1], labels[2]
    found = re.search(r"window=\{([^}]*)\}", attributes)  # none where a matrix product is written as a convolution
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", found[1])) if found else {}
    taps = float(right[kernel.index("i")])
    axes = sorted(label for label in kernel if label.isdigit())
    for index, axis in enumerate(axes):
        width = right[kernel.index(axis)]

        def setting(name: str, default: int, index: int = index) -> int:
            return int(window[name].split("x")[index]) if name in window else default

        low, high = (
            map(int, window["pad"].split("x")[index].split("_")) if "pad" in window else (0, 0)
        )  # may be negative
        taps *= _mean_taps(
            left[sides.index(axis)], width, low, high, setting("stride", 1), setting("lhs_dilate", 1),
            setting("rhs_dilate", 1),
        )  # fmt: skip
    return taps


def _mean_taps(size: int, width: int, low: int, high: int, stride: int, spread: int, dilation: int) -> float:
    """Taps that meet a true input, averaged over the outputs of one axis."""
    length = (size - 1) * spread + 1
    reach = (width - 1) * dilation + 1
    outputs = (length + low + high - reach) // stride + 1
    met = 0
    for tap in range(width):
        # Output o reads place o * stride + tap * dilation - low; a true input lies at the multiples of `spread`.
        offset = tap * dilation - low
        first = max(0, math.ceil(-offset / stride))
        last = min(outputs - 1, (length - 1 - offset) // stride)
        if spread == 1:
            met += max(0, last - first + 1)
        else:
            met += sum((place * stride + offset) % spread == 0 for place in range(first, last + 1))
    return met / max(outputs, 1)
