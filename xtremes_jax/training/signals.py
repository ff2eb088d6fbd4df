"""SIGTERM, SIGINT and SIGUSR1: stop where nothing can be lost, save first where something can; a second one kills."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The run was asked to stop; `status` is the exit status, 128 + signal number."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.status = 128 + signal_number


class StopRequest:
    """Context in which its signals raise `Interrupted`, or, inside `deferred()`, only set `received`.

    SIGTERM comes from whoever takes the machine back, SIGINT from the keyboard, SIGUSR1 from Slurm (`--signal`).
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def deferred(self, wait: bool = True) -> Iterator[None]:
        """Within, a signal waits to be looked up in `received`; `wait=False` suspends that again for a while."""
        before, self._deferred = self._deferred, wait
        try:
            yield
        finally:
            self._deferred = before

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # From here on a second signal ends the process at once, whatever it is doing.
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL)
        if not self._deferred:
            raise Interrupted(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
