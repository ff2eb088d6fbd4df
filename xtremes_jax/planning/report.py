"""A plan as people and as programs read it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xtremes_jax.planning.cost import LINK_SHARE, UTILISATION, ProgramCost
from xtremes_jax.planning.topology import GIB, Target

MIB = 2**20
_GPUS_OF_A_MACHINE = 8
_PRECISIONS = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "default": "float32 as JAX multiplies it by default",
    "tensorfloat32": "TensorFloat-32",
    "float32": "full float32",
}


@dataclass(frozen=True)
class Bucket:
    """One program: a step for the batches of one length."""

    role: str
    seconds: float
    """That every clip is padded to."""
    rows: int
    """Clips on each device, all micro-batches together."""
    micro_batches: int
    labels: int
    """Columns of labels."""
    times: int
    """Batches of it in an epoch, or in a pass over a scored split."""
    cost: ProgramCost
    resident: int
    """Bytes on each device beside what the step takes: batches that wait, and what other steps need."""
    memory: int
    """Bytes that a device has."""
    step_seconds: float | None
    """Estimated; None where it does not fit."""
    programs: int = 0
    """Bytes on each device of all programs of the run, this one among them: they stay there."""

    @property
    def peak(self) -> int | None:
        """Bytes on each device at the peak; None where XLA refuses and does not say what it would need."""
        return None if self.cost.needed is None else self.cost.needed + self.resident + self.programs

    @property
    def fits(self) -> bool:
        """Whether the device's memory holds it."""
        return self.cost.refused is None and self.peak <= self.memory


@dataclass(frozen=True)
class Trial:
    """A batch size that was tried."""

    rows: int
    """Clips of a micro-batch on each device."""
    peak: int | None
    fits: bool
    compile_seconds: float

    @classmethod
    def of(cls, rows: int, buckets: Sequence[Bucket]) -> "Trial":
        """Of the programs that were compiled for so many clips; the last one need not fit."""
        peaks = [bucket.peak for bucket in buckets]
        return cls(
            rows, None if None in peaks else max(peaks), all(bucket.fits for bucket in buckets),
            sum(bucket.cost.compile_seconds for bucket in buckets),
        )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What `--find_batch` has found."""

    flag: str
    """That sets it."""
    value: float
    """Largest that fits; 0 if none does."""
    rows: int
    """Clips of the longest bucket that this is on each device, in a micro-batch."""
    seconds: float
    """Of the longest bucket's clips."""
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Plan:
    """All that was found out."""

    title: str
    target: Target
    mesh: dict[str, int]
    precision: str
    """A key of `Chip.flops_per_s`."""
    trainable: int
    """Bytes of trained parameters on each device; so are the next two."""
    frozen: int
    optimizer: int
    buckets: tuple[Bucket, ...]
    steps_per_epoch: int
    total_steps: int
    assumed: tuple[str, ...] = ()
    """Of the data."""
    found: Found | None = None

    def pass_seconds(self, role: str) -> float | None:
        """Estimated time of all batches of a part, once; None where one of its programs does not fit."""
        parts = [bucket for bucket in self.buckets if bucket.role == role]
        if any(bucket.step_seconds is None for bucket in parts):
            return None
        return sum(bucket.times * bucket.step_seconds for bucket in parts)


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything, in bytes and seconds."""
    chip = plan.target.chip
    buckets = [dataclasses.asdict(bucket) | {"peak": bucket.peak, "fits": bucket.fits} for bucket in plan.buckets]
    return {
        "title": plan.title,
        "topology": plan.target.name,
        "devices": len(plan.target.devices),
        "mesh": plan.mesh,
        "chip": dataclasses.asdict(chip),
        "precision": plan.precision,
        "per_device": {"trainable": plan.trainable, "frozen": plan.frozen, "optimizer": plan.optimizer},
        "buckets": buckets,
        "fits": all(bucket.fits for bucket in plan.buckets),
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "epoch_seconds": plan.pass_seconds("train"),
        "pass_seconds": {role: plan.pass_seconds(role) for role in dict.fromkeys(b.role for b in plan.buckets)},
        "found_batch": None if plan.found is None else dataclasses.asdict(plan.found),
        "assumptions": assumptions(plan),
    }


def as_text(plan: Plan) -> str:
    """The table and the sentences around it."""
    chip, parameters = plan.target.chip, plan.trainable + plan.frozen
    axes = ", ".join(f"{name} {size}" for name, size in plan.mesh.items())
    code = max(bucket.programs for bucket in plan.buckets)
    programs = f"programs {code / MIB:,.1f} MiB, " if code else ""
    lines = [
        "",
        f"{plan.title} on {plan.target.name}: {len(plan.target.devices)} x {chip.kind}, mesh {axes}",
        f"On each device: parameters {parameters / MIB:,.1f} MiB (of them frozen {plan.frozen / MIB:,.1f}), optimizer "
        f"state {plan.optimizer / MIB:,.1f} MiB, {programs}memory {chip.memory / GIB:.2f} GiB",
        "",
        _table(plan.buckets),
        "",
        *_times(plan),
        *_warnings(plan),
        *([] if plan.found is None else _found(plan.found)),
        *(f"Assumed: {sentence}" for sentence in assumptions(plan)),
    ]
    return "\n".join(lines)


_COLUMNS = (
    "part", "clip s", "rows", "labels", "batches", "activations MiB", "peak MiB", "of memory", "GFLOP", "MB sent",
    "step ms",
)  # fmt: skip


def _table(buckets: Sequence[Bucket]) -> str:
    """Rows, memory, FLOPs and bytes are of one device."""
    rows = [list(_COLUMNS)]
    for bucket in buckets:
        cost, peak = bucket.cost, bucket.peak
        parts = f" in {bucket.micro_batches}" if bucket.micro_batches > 1 else ""
        memory = "too much" if peak is None else f"{peak / bucket.memory:.0%}" + ("" if bucket.fits else " TOO MUCH")
        rows.append(
            [
                bucket.role, f"{bucket.seconds:.2f}", f"{bucket.rows}{parts}", str(bucket.labels), f"{bucket.times:,}",
                _number(cost.temporary, MIB), _number(peak, MIB), memory, _number(cost.flops, 1e9),
                _number(cost.sent, 1e6), "" if bucket.step_seconds is None else f"{1e3 * bucket.step_seconds:,.1f}",
            ]
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(text.rstrip() for text in [texts[0], "  ".join("-" * width for width in widths), *texts[1:]])


def _number(value: float | None, unit: float) -> str:
    if value is None:
        return "?"
    return f"{value / unit:,.0f}" if value >= 100 * unit else f"{value / unit:,.1f}"


def _times(plan: Plan) -> list[str]:
    lines = []
    epoch = plan.pass_seconds("train")
    if epoch is not None:
        epochs = plan.total_steps / plan.steps_per_epoch
        lines.append(
            f"An epoch: {plan.steps_per_epoch:,} steps, about {_time(epoch)}. The run: {plan.total_steps:,} steps "
            f"({epochs:.4g} epochs), about {_time(epoch * epochs)}, without scoring."
        )
    for role, what in (
        ("frames", "The front end's frames in the first epoch of --cache_frontend, besides: about"),
        ("eval", "Scoring --eval_split_name once: about"),
        ("predict", "Scoring --predict_split_name once: about"),
    ):
        if any(bucket.role == role for bucket in plan.buckets) and plan.pass_seconds(role) is not None:
            lines.append(f"{what} {_time(plan.pass_seconds(role))}.")
    return lines


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{1e3 * seconds:.0f} ms"


def _warnings(plan: Plan) -> list[str]:
    """What does not fit, and what may be done."""
    wrong = [bucket for bucket in plan.buckets if not bucket.fits]
    if not wrong:
        return []
    which = ", ".join(f"{bucket.role} {bucket.seconds:.2f} s" for bucket in wrong)
    said = next((bucket.cost.refused for bucket in wrong if bucket.cost.refused), None)
    return [
        f"DOES NOT FIT: {which}. Lower --per_device_train_batch_size and raise --gradient_accumulation_steps by as "
        "much (the result stays the same), or --per_device_eval_batch_size for what is scored; add "
        "--gradient_checkpointing, --bf16 or --fsdp_devices; or leave long clips out with --max_duration_in_seconds."
        + (f" XLA says: {said}" if said else "")
    ]


def _found(found: Found) -> list[str]:
    longest = f"in the longest bucket ({found.seconds:.2f} s)"
    if not found.value:
        return [f"No batch fits {longest}, not even the smallest."]
    larger_tried = any(trial.rows > found.rows for trial in found.trials)
    more = "" if larger_tried else ", and no larger one was tried"
    return [f"The largest that fits {longest}: --{found.flag} {found.value:.12g}, in {len(found.trials)} trials{more}."]


def assumptions(plan: Plan) -> list[str]:
    """What the figures stand on, in sentences."""
    chip = plan.target.chip
    rate = chip.flops_per_s[plan.precision]
    by_bytes = (
        f" or memory traffic at {chip.bytes_per_s / 1e9:,.4g} GB/s, whichever is longer"
        if chip.bytes_per_s is not None
        else " (what the device's own program would move is not known)"
    )
    sentences = [
        f"step time = products at {UTILISATION:.0%} of {rate / 1e12:,.4g} TFLOP/s ({_PRECISIONS[plan.precision]})"
        f"{by_bytes}, then what is sent at {LINK_SHARE:.0%} of {chip.sent_bytes_per_s / 1e9:,.3g} GB/s, nothing at "
        f"once; waiting for data and checkpoints are left out. Rates and memory: {chip.source}.",
        "FLOPs are of products and convolutions in the compiled program, loops multiplied out, with what is computed "
        "again in the backward pass. Activations are all temporary memory, gradients among it; the peak is arguments, "
        "temporary memory, two batches that wait, for TPUs all programs of the run, and, where scoring interrupts "
        "training, the optimizer's state.",
    ]
    if plan.target.is_proxy:
        sentences.append(
            "memory, FLOPs and bytes sent are those of the program for GPUs as XLA compiles it for as many CPU "
            "devices, which computes partly in float32 where a GPU has half precision, and has no fused attention."
        )
        if len(plan.target.devices) > _GPUS_OF_A_MACHINE:
            sentences.append(
                f"all {len(plan.target.devices)} GPUs send at the rate of the links inside a machine, which has "
                f"{_GPUS_OF_A_MACHINE} as a rule; what goes between machines takes longer."
            )
    return [*sentences, *plan.assumed]
