"""SIGTERM and SIGINT: stop where nothing can be lost, save first where something can; a second signal stops at once."""

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
    """Context in which SIGTERM and SIGINT raise `Interrupted`, or, inside `deferred()`, only set `received`."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

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
        # From here on a second signal has its usual effect.
        self._restore()
        if not self._deferred:
            raise Interrupted(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
