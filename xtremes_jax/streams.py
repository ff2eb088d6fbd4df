"""Standard output and standard error of a program whose reader may go away, as `head` does.

What nobody reads any more is dropped, and the run goes on: it has files to write. Only these two streams are treated
so; a broken pipe elsewhere, as to a worker process, stays the error that it is.
"""

import atexit
import os
import sys
from typing import Any, TextIO


class _Stream:
    """The stream that `sys` has under a name at the time, as a file to write to."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(sys, self._name), attribute)

    def write(self, text: str) -> int:
        """Writes text, or drops it."""
        try:
            return getattr(sys, self._name).write(text)
        except BrokenPipeError:
            return self._divert(len(text))

    def flush(self) -> None:
        """Sends what has been written on its way, or drops it."""
        try:
            getattr(sys, self._name).flush()
        except BrokenPipeError:
            self._divert(0)

    def _divert(self, written: int) -> int:
        """Has all later output, and what is in the buffer, go nowhere; Python itself flushes once more at its end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, getattr(sys, self._name).fileno())
        os.close(nowhere)
        return written


STDOUT: TextIO = _Stream("stdout")
STDERR: TextIO = _Stream("stderr")


def say(*values: object) -> None:
    """Prints to standard output at once."""
    print(*values, file=STDOUT, flush=True)


@atexit.register
def _flush() -> None:
    """Also of what others have printed, such as argparse its help."""
    for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        file = getattr(sys, name)
        if file is not None and not file.closed:
            stream.flush()
