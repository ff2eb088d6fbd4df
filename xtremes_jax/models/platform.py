"""Which kind of device a program is written for: this process's own, unless another one is named."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_named: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """What programs that are traced now are to run on: cpu, gpu or tpu."""
    return _named.get() or jax.default_backend()


@contextmanager
def written_for(name: str) -> Iterator[None]:
    """Has programs that this thread traces written for another kind of device than this process has."""
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)
