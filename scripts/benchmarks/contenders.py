"""The contenders of a step benchmark, each in a process of its own that runs steps when it is told to.

A process of its own keeps the libraries' threads and memory apart; only one of them works at a time.
"""

import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.work import Work

_BATCHES = 3


@dataclass
class Prepared:
    """A contender that is ready to run.

    `run(kind, steps)` does that many training ("train") or evaluation ("eval") steps and waits for the last one;
    `matmul_peak()` is the rate of a large product in the work's dtype, in FLOP/s; `accelerator_peak()` the largest
    device memory so far in bytes, None on a CPU.
    """

    run: Callable[[str, int], None]
    matmul_peak: Callable[[], float]
    accelerator_peak: Callable[[], int | None]
    describe: str


def serve(prepare: Callable[[Work], Prepared], work: Work) -> None:
    """Answers the commands of `Contender` on standard input, one JSON line for each on standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not stand between the answers
    contender = prepare(work)
    answers.write(json.dumps({"describe": contender.describe}) + "\n")
    answers.flush()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "peak":
            answer = {"matmul_peak": contender.matmul_peak()}
        else:
            with ResidentPeak() as resident:
                begun = time.perf_counter()
                contender.run(command["kind"], command["steps"])
                seconds = time.perf_counter() - begun
            device = contender.accelerator_peak()
            answer = {
                "seconds": seconds / command["steps"],
                "peak_bytes": resident.grown if device is None else device,
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class ResidentPeak:
    """Samples this process's resident memory every 5 ms; `grown` is the most of it over that at the start, in bytes."""

    def __enter__(self) -> "ResidentPeak":
        self._before, self._most, self._stop = _resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._most = max(self._most, _resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        """Bytes; 0 where the system does not tell."""
        return max(self._most - self._before, 0)


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


class Contender:
    """A contender's process, seen from outside."""

    def __init__(self, name: str, work: Work, environment: dict[str, str] | None = None):
        """Starts `benchmark_step.py --serve NAME` and waits until it is ready."""
        script = Path(__file__).resolve().parent.parent / "benchmark_step.py"
        command = [sys.executable, str(script), "--serve", name, json.dumps(asdict(work))]
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        self.describe = self._answer()["describe"]

    def run(self, kind: str, steps: int = 1) -> dict[str, float]:
        """Seconds a step, and the most memory in bytes."""
        return self._ask({"do": "run", "kind": kind, "steps": steps})

    def matmul_peak(self) -> float:
        """FLOP/s of a large matrix product."""
        return self._ask({"do": "peak"})["matmul_peak"]

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, command: dict[str, Any]) -> dict[str, float]:
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the contender {self.name!r} ended with status {self._process.wait()}: see above")
        return json.loads(line)


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """The median, and half the distance between the quartiles."""
    ordered = sorted(values)

    def quantile(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])

    return quantile(0.5), (quantile(0.75) - quantile(0.25)) / 2


def best_rate(multiply: Callable[[], None], flops: float, repeats: int = 8) -> float:
    """FLOP/s of the fastest of several calls, after one that does not count."""
    multiply()
    best = math.inf
    for _ in range(repeats):
        begun = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - begun)
    return flops / best


def batches_of(work: Work) -> list:
    """The batches that a contender goes round and round."""
    return work.batches(_BATCHES)
