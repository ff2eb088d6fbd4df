"""A thread that notices when a run no longer moves, and says where it stands."""

import faulthandler
import logging
import sys
import threading
import time
from types import TracebackType

from xtremes_jax.training import processes

logger = logging.getLogger(__name__)


class Watchdog:
    """Context in which a run that makes no progress for a while is named with its phase, and all threads' stacks.

    The run itself goes on: it may be a compiler, a slow disk, or another process that is waited for.

    Args:
        timeout: seconds without progress; None watches nothing.
        phase: where the run begins.
    """

    def __init__(self, timeout: float | None, phase: str = "start"):
        self._timeout, self._phase, self._moved = timeout, phase, time.monotonic()
        self._ended = threading.Event()
        logger.debug("Phase: %s", phase)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, phase: str) -> str:
        """The run enters a phase, which is progress; the phase that it leaves."""
        left, self._phase = self._phase, phase
        self.beat()
        logger.debug("Phase: %s", phase)
        return left

    def beat(self) -> None:
        """The run has made progress."""
        self._moved = time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self._timeout is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        told = self._moved
        while not self._ended.wait(self._timeout / 10):
            if processes.is_waiting():
                self.beat()  # it is another process that does not move, and that one says so
            moved, now = self._moved, time.monotonic()
            if now - max(moved, told) < self._timeout:
                continue
            told = now
            logger.error(  # of this very process, whichever it is
                "Nothing has moved for %.0f s (--stall_timeout) in this phase: %s. What every thread does:",
                now - moved, self._phase,
            )  # fmt: skip
            faulthandler.dump_traceback(sys.__stderr__)
