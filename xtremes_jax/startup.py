"""How long a run takes from its beginning to its first step, and on what: printed once in every run."""

import logging
import os
import time
from pathlib import Path

from xtremes_jax.training.ahead import CompiledAhead
from xtremes_jax.training.meter import FitReport

logger = logging.getLogger(__name__)


def process_begun() -> float:
    """When this process was started, in seconds of `time.time()`; now where the system does not tell (not Linux)."""
    try:
        # Fields after the command's name, which is in brackets: number 22 of all is the start, in ticks since boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except OSError:
        return time.time()


class StartUp:
    """A stopwatch from the beginning of a run to the end of its first step.

    Args:
        begun: the beginning, in seconds of `time.time()`; now where absent.

    Attributes:
        seconds: of each part that is over, in order.
    """

    def __init__(self, begun: float | None = None):
        self._begun = self._last = time.time() if begun is None else begun
        self.seconds: dict[str, float] = {}
        self._total: float | None = None

    def mark(self, part: str) -> None:
        """Ends a part: all the time since the part before."""
        now = time.time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def first_step(self, report: FitReport, step: CompiledAhead) -> None:
        """Ends with the first step, whose waiting the loop has measured, and prints the whole."""
        self._total = time.time() - self._begun
        rest = time.time() - self._last
        self.seconds["first_batch"] = report.wait_seconds
        self.seconds["first_program"] = report.compile_seconds
        self.seconds["computing"] = max(0.0, rest - report.wait_seconds - report.compile_seconds)
        parts = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in self.seconds.items())
        programs = f"{len(step.programs)} of {step.announced} programs are ready, {step.cached} of them from the cache"
        logger.info("First step after %.1f s: %s; %s", self._total, parts, programs)

    def results(self) -> dict[str, float]:
        """What `train_results.json` holds of it; nothing if no step was made."""
        if self._total is None:
            return {}
        parts = {f"train_start_{name}_seconds": seconds for name, seconds in self.seconds.items()}
        return {"train_start_seconds": self._total, **parts}
