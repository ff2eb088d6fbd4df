"""Changes the number of devices, then of processes, in the middle of a small real run: its losses must stay the same.

    python scripts/stress_shapes.py [--steps 12] [--json FILE]

Trains a tiny model on the built-in SYNTHETIC corpus on simulated devices of this machine: undisturbed on one device; a
third each on 1, 4 and 2 devices, the last with parameters split over both; and a third each by one process with four
devices, two with two and four with one, of which the second third splits parameters over all four. Prints the losses of
every step side by side, and exits with 1 if any differs by more than 1e-5 of itself, or if a step had other clips.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stress_resume import MODEL, ROOT, command, say

BATCH = 8
"""Clips of a step, over all devices."""
TOLERANCE = 1e-5
ONE = [(1, 1, 1)]
DEVICES = [(1, 1, 1), (1, 4, 1), (1, 2, 2)]
PROCESSES = [(1, 4, 1), (2, 2, 4), (4, 1, 1)]
"""Of each part of a run: processes, devices of each, and devices that share the parameters."""


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="of the run, a multiple of 3")
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    columns = {"one device": ONE, "1, 4, 2 devices": DEVICES, "1, 2, 4 processes": PROCESSES}
    with tempfile.TemporaryDirectory(prefix="stress-shapes-") as folder:
        work = Path(folder)
        (work / "model.json").write_text(json.dumps(MODEL), encoding="utf-8")
        outputs = {name: work / f"run{number}" for number, name in enumerate(columns)}
        for name, parts in columns.items():
            train_in_parts(work, outputs[name], parts, wanted.steps)
        losses = {name: read(output, "metrics.jsonl", "loss") for name, output in outputs.items()}
        clips = {name: read(output, "batches.jsonl", "sample_ids") for name, output in outputs.items()}
    print_table(losses)
    names = list(columns)
    worst = {name: max(relative(*pair) for pair in zip(losses[name], losses[names[0]], strict=True)) for name in names}
    same = {name: clips[name] == clips[names[0]] for name in names}
    for name in names[1:]:
        print(f"{name}: largest relative difference {worst[name]:.1e}, clips of all steps the same: {same[name]}")
    if wanted.json:
        wanted.json.write_text(json.dumps({"losses": losses, "same clips": same}, indent=2) + "\n", encoding="utf-8")
    return int(not all(same.values()) or max(worst.values()) > TOLERANCE)


def train_in_parts(work: Path, output: Path, parts: list[tuple[int, int, int]], steps: int) -> None:
    """Trains on one arrangement after the other; what each has made beyond its part is taken away again."""
    for number, (processes, devices, shared) in enumerate(parts, start=1):
        say(f"{output.name}: {processes} processes with {devices} devices each, parameters split over {shared}")
        start(work, output, steps, processes, devices, shared)
        until = steps * number // len(parts)
        for checkpoint in (output / "checkpoints").iterdir():
            if int(checkpoint.name) > until:
                shutil.rmtree(checkpoint)


def start(work: Path, output: Path, steps: int, processes: int, devices: int, shared: int) -> None:
    """Runs the command in all its processes to the end."""
    changes: dict[str, Any] = {
        "eval_strategy": "no", "load_best_model_at_end": False, "do_eval": False, "do_predict": False,
        "logging_steps": 1, "save_steps": steps // 3, "save_total_limit": 9, "fsdp_devices": shared,
        "per_device_train_batch_size": BATCH // (processes * devices),
    }  # fmt: skip
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    started = []
    for index in range(processes):
        if processes > 1:
            changes |= {"coordinator_address": address, "num_processes": processes, "process_id": index}
        line = command(work, output, steps, **changes)
        environment = os.environ | {"XLA_FLAGS": flags}
        started.append(
            subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        )
    for index, process in enumerate(started):
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"Process {index} failed with status {process.returncode}:\n{errors.decode()[-3000:]}")


def read(output: Path, name: str, field: str) -> list[Any]:
    """A field of every line of a file."""
    return [json.loads(line)[field] for line in (output / name).read_text("utf-8").splitlines()]


def relative(value: float, expected: float) -> float:
    """How much a value differs from another, as a share of that."""
    return abs(value - expected) / abs(expected)


def print_table(losses: dict[str, list[float]]) -> None:
    """A column a run, a line a step."""
    print("step  " + "  ".join(name.rjust(18) for name in losses))
    for step, values in enumerate(zip(*losses.values(), strict=True), start=1):
        print(f"{step:4}  " + "  ".join(f"{value:18.7f}" for value in values))


if __name__ == "__main__":
    sys.exit(main())
