"""SIGTERM, SIGINT and SIGUSR1: stop where nothing can be lost, save first where something can; a second one kills."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """The run was asked to stop; `status` is the exit status, 128 + signal number.

    No `Exception`, as `KeyboardInterrupt` is none: libraries and we catch those to try again or to go on without.

    Attributes:
        way_on: a clause for the message, about what the same command will do.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.status = 128 + signal_number
        self.way_on = ""


class StopRequest:
    """Context in which its signals raise `Interrupted`, or, inside `deferred()`, only set `received`.

    SIGTERM comes from whoever takes the machine back, SIGINT from the keyboard, SIGUSR1 from Slurm (`--signal`).

    Args:
        shared: the run has other processes, which may have had no signal. Inside `deferred()` none counts then before
            all of them have agreed to (`obey`): what they do together nobody may leave by himself.

    Attributes:
        shared: as given.
        asked: number of the signal that this process has had.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, shared: bool = False) -> None:
        self.asked: int | None = None
        self._agreed: int | None = None
        self.shared = shared
        self._deferred = False
        self._previous: dict[int, object] = {}
        self._unraisable = sys.unraisablehook

    def __enter__(self) -> "StopRequest":
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._look_at_unraisable
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        sys.unraisablehook = self._unraisable

    @property
    def received(self) -> int | None:
        """Number of the signal that counts by now."""
        return self._agreed if self.shared and self._deferred else self.asked

    def obey(self, number: int) -> None:
        """Takes over the signal that one of the processes has had, which all have agreed upon."""
        self.asked = self._agreed = number

    @contextmanager
    def deferred(self, wait: bool = True) -> Iterator[None]:
        """Within, a signal waits to be looked up in `received`; `wait=False` suspends that again for a while.

        With other processes nothing suspends it.

        Raises:
            Interrupted: with `wait=False`, if a signal has waited: what follows may take long.
        """
        before, self._deferred = self._deferred, wait or (self.shared and self._deferred)
        try:
            if not wait:
                self.check()
            yield
        finally:
            self._deferred = before

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _look_at_unraisable(self, unraisable: Any) -> None:
        """An exception in a destructor or a callback of C is lost there; `check` finds the signal all the same."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._unraisable(unraisable)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        # From here on a second signal ends the process at once, whatever it is doing.
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL)
        if not self._deferred:
            raise Interrupted(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
