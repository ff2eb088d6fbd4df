"""Reads thousands of hostile files with every reader, each within 5 s and 1 GiB: they make sense or are refused.

    python scripts/fuzz_readers.py --inputs 10000 [--seed 0] [--reader audio ...] [--json FILE]
    python scripts/fuzz_readers.py --reader audio --only 1234          # one input again

Valid small files are made and then damaged, spliced, cut, and given headers and values that lie: hours of audio, sizes
of terabytes, paths outside the folder, pickles that would run a command, archives that unpack to gigabytes. Each is
read in another process, which has 5 s of processor time (or of waiting) and 1 GiB of memory for it. An input has to be
accepted with values that make sense, or refused by an `InputError` that names the file (of arguments, the flag).
Anything else is a failure: another exception, a hang, memory, a file that was written, the end of the process. Failing
inputs are kept; the exit status is then 1.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from fuzzing.readers import NAMES
from fuzzing.worker import Outcome, work

MAX_SECONDS = 5.0
_SECONDS_TO_MAKE = 300.0
"""To start a process, and to make an input; nothing is judged by it."""
_LARGEST_KEPT = 1 << 26
_FINE = ("accepted", "refused")


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    verdicts: Counter = field(default_factory=Counter)
    longest_seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, outcome: Outcome) -> None:
        """Counts one more."""
        self.verdicts[outcome.verdict] += 1
        self.longest_seconds = max(self.longest_seconds, outcome.seconds)
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)

    @property
    def failures(self) -> int:
        return sum(count for verdict, count in self.verdicts.items() if verdict not in _FINE)


class Worker:
    """A process that reads inputs, and what it is at."""

    def __init__(self, root: Path, seed: int):
        self.root, self._seed = root, seed
        self.task: tuple[str, int] | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, str(self.root), self._seed), daemon=True)
        self._process.start()
        other.close()
        self.reading = False

    def give(self, task: tuple[str, int]) -> None:
        """Hands over the next input."""
        self.task, self.reading = task, False
        self.deadline = time.monotonic() + _SECONDS_TO_MAKE
        self.pipe.send(task)

    def answer(self) -> Outcome | None:
        """The outcome of the current input; None while there is none. Call it when the pipe is ready, or time is up."""
        try:
            if not self.pipe.poll():
                return self._killed("hang") if time.monotonic() > self.deadline and self._hangs() else None
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._killed("crash")
        if isinstance(message, Outcome):
            return message
        self.reading, self.deadline = True, time.monotonic() + MAX_SECONDS
        self._began, self._idle = time.monotonic(), 0
        self._used = self._had = self._state()[1]
        return None

    def _hangs(self) -> bool:
        """Whether time is up: of its processor, or it waits for something. To wait for its turn is no fault."""
        if not self.reading:
            return True
        runnable, used = self._state()
        self._idle = 0 if runnable or used > self._used else self._idle + 1
        self._used, self.deadline = used, time.monotonic() + 0.2
        return used - self._had > MAX_SECONDS or self._idle > 5 or time.monotonic() - self._began > 20 * MAX_SECONDS

    def _state(self) -> tuple[bool, float]:
        """Whether the process runs or could, and the processor time that it has had, in seconds."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return fields[0] in "RD", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _killed(self, verdict: str) -> Outcome:
        if verdict == "hang":
            self._process.kill()
        self._process.join()
        printed = (self.root / "printed.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
        verdict = verdict if self.reading else f"{verdict} before reading"
        detail = f"the process ended with {self._process.exitcode}; it printed:\n{printed}"
        self._start()
        return Outcome(verdict, detail, MAX_SECONDS if "hang" in verdict else 0.0, 0)

    def stop(self) -> None:
        """Ends the process."""
        self.pipe.send(None)
        self._process.join(10)
        self._process.kill()


def tasks_of(wanted: argparse.Namespace) -> list[tuple[str, int]]:
    """(reader, index) of every input, the readers in turn."""
    names = wanted.reader or list(NAMES)
    if wanted.only is not None:
        return [(name, wanted.only) for name in names]
    total = sum(NAMES[name] for name in names)
    counts = {name: int(wanted.inputs * NAMES[name] / total) for name in names}
    counts[names[0]] += wanted.inputs - sum(counts.values())
    return [(name, index) for name, count in counts.items() for index in range(count)]


def outcomes_of(
    tasks: list[tuple[str, int]], workers: list[Worker]
) -> Iterator[tuple[tuple[str, int], Outcome, Worker]]:
    """Has all inputs read; gives each with its outcome and the worker whose folder still holds it."""
    left = iter(tasks)
    busy = []
    for worker in workers:
        if (task := next(left, None)) is not None:
            worker.give(task)
            busy.append(worker)
    while busy:
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        wait([worker.pipe for worker in busy], timeout=patience + 0.01)
        for worker in list(busy):
            outcome = worker.answer()
            if outcome is None:
                continue
            yield worker.task, outcome, worker
            task = next(left, None)
            if task is None:
                busy.remove(worker)
            else:
                worker.give(task)


def keep(failures: Path, task: tuple[str, int], outcome: Outcome, worker: Worker, seed: int) -> None:
    """Copies a failing input to where it can be looked at, and says so."""
    name, index = task
    target = failures / f"{name}-{seed}-{index}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(worker.root / "input", target, symlinks=True, ignore=_not_to_copy)
    (target / "outcome.txt").write_text(f"{outcome.verdict}\n{outcome.detail}\n", encoding="utf-8")
    last = outcome.detail.strip().splitlines()[-1:] or [""]
    print(f"\nFAILED {name} {index}: {outcome.verdict}: {last[0][:200]}\n  kept in {target}", flush=True)


def _not_to_copy(folder: str, names: list[str]) -> list[str]:
    """Pipes, and files that are large (they are sparse): `--only` makes them again."""
    paths = {name: Path(folder, name) for name in names}
    plain = [name for name, path in paths.items() if path.is_symlink() or path.is_dir()
             or (path.is_file() and path.stat().st_size < _LARGEST_KEPT)]  # fmt: skip
    return [name for name in names if name not in plain]


def table_of(tallies: dict[str, Tally]) -> str:
    """The table of results, with a line for all readers together."""
    lines = [
        f"{'reader':<14}{'inputs':>8}{'accepted':>10}{'refused':>9}{'failures':>10}{'longest s':>11}{'peak MiB':>10}"
    ]
    whole = Tally()
    for name, tally in tallies.items():
        lines.append(_row(name, tally))
        whole.verdicts += tally.verdicts
        whole.longest_seconds = max(whole.longest_seconds, tally.longest_seconds)
        whole.peak_bytes = max(whole.peak_bytes, tally.peak_bytes)
    return "\n".join([*lines, _row("all", whole)])


def _row(name: str, tally: Tally) -> str:
    return (
        f"{name:<14}{sum(tally.verdicts.values()):>8}{tally.verdicts['accepted']:>10}{tally.verdicts['refused']:>9}"
        f"{tally.failures:>10}{tally.longest_seconds:>11.2f}{tally.peak_bytes / 2**20:>10.0f}"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of all readers together (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", nargs="+", choices=NAMES, help="only these")
    parser.add_argument("--only", type=int, metavar="INDEX", help="read only this input")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--failures", type=Path, help="where failing inputs are kept (default: a temporary folder)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; the exit status is 1 if an input failed."""
    wanted = parse(argv)
    tasks = tasks_of(wanted)
    failures = wanted.failures or Path(tempfile.gettempdir()) / "fuzz_failures"
    tallies: dict[str, Tally] = {name: Tally() for name in dict.fromkeys(name for name, _ in tasks)}
    began = shown = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz_readers-", ignore_cleanup_errors=True) as scratch:
        roots = [Path(scratch) / f"worker{number}" for number in range(min(wanted.workers, len(tasks)))]
        for root in roots:
            root.mkdir()
        workers = [Worker(root, wanted.seed) for root in roots]
        for done, (task, outcome, worker) in enumerate(outcomes_of(tasks, workers), 1):
            tallies[task[0]].add(outcome)
            if outcome.verdict not in _FINE:
                keep(failures, task, outcome, worker, wanted.seed)
            elif wanted.only is not None:
                print(f"{outcome.verdict} in {outcome.seconds:.2f} s, {outcome.peak_bytes >> 20} MiB: {outcome.detail}")
            if time.monotonic() - shown > 2 or done == len(tasks):
                shown = time.monotonic()
                failed = sum(tally.failures for tally in tallies.values())
                print(f"{done:,} of {len(tasks):,} inputs, {failed} failed, at {task[0]}, "
                      f"{shown - began:.0f} s", flush=True)  # fmt: skip
        for worker in workers:
            worker.stop()
    print(f"\n{table_of(tallies)}\nseed {wanted.seed}, {time.monotonic() - began:.0f} s")
    if wanted.json:
        report = {name: {**tally.verdicts, "longest_seconds": tally.longest_seconds, "peak_bytes": tally.peak_bytes}
                  for name, tally in tallies.items()}  # fmt: skip
        wanted.json.write_text(json.dumps({"seed": wanted.seed, "readers": report}, indent=2) + "\n", encoding="utf-8")
    return 1 if any(tally.failures for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
