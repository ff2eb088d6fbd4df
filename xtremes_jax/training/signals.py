"""SIGTERM and SIGINT ask the loop to save and stop; a second signal stops at once."""

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; `status` is the exit status 128 + signal number."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.status = 128 + signal_number


class StopRequest:
    """Context in which SIGTERM and SIGINT set `received` instead of ending the process."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # From here on a second signal has its usual effect.
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come; for places where there is nothing to save."""
        if self.received is not None:
            raise Interrupted(self.received)
