"""What the processes of one run say to each other beside the arrays of its steps, and how they end together.

Everything here also works in a run of one process, where there is nobody to talk to. Values travel through the service
that `jax.distributed` runs in process 0, as JSON; every process calls these functions in the same order, in its main
thread. What is to be agreed upon at every step travels through the devices (`Agreement`).
"""

import itertools
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

# There is no public way to exchange a few bytes without devices; Orbax takes the same one.
from jax._src.distributed import global_state
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xtremes_jax.errors import InputError
from xtremes_jax.training.signals import Interrupted

logger = logging.getLogger(__name__)

_END = "xtremes_jax/end"
_LEFT = "xtremes_jax/left"
_POLL_SECONDS = 1.0
_GRACE_SECONDS = 10.0
"""How long who ends a run waits for the others to have heard of it."""
_SILENCE_SECONDS = 20.0
"""How long process 0 may fail to answer before it counts as lost: its machine or the network may be busy."""
_PATIENCE_SECONDS = 3.0
_LAG = 2
"""Steps after which what a process wishes for is known to all: as many as a loop leaves to the devices."""

_calls = itertools.count()
_waiting = threading.Event()


def count() -> int:
    """Processes of this run. Unlike `jax.process_count()`, this asks for no devices."""
    return 1 if global_state.client is None else global_state.num_processes


def index() -> int:
    """Number of this process among them, from 0 on."""
    return 0 if global_state.client is None else global_state.process_id


def several() -> bool:
    """Whether the run has more processes than this one."""
    return count() > 1


def is_first() -> bool:
    """Whether this is process 0, which alone writes a run's files and speaks of its course."""
    return index() == 0


def is_waiting() -> bool:
    """Whether this process does nothing but wait for what another one has to say."""
    return _waiting.is_set()


def gather(value: Any) -> list[Any]:
    """What each process has given, in their order; waits for all of them. Values are JSON."""
    if not several():
        return [value]
    call = next(_calls)
    global_state.client.key_value_set(f"xtremes_jax/{call}/{index()}", json.dumps(value))
    return [json.loads(_wait_for(f"xtremes_jax/{call}/{other}")) for other in range(count())]


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in process 0, the only one to call it; the others wait for it. Values are JSON.

    They wait here, where a signal and the end of the run are heard, and not in an operation on the devices.

    Raises:
        InputError: in all processes, if `make` raises one.
    """
    if not several():
        return make()
    key = f"xtremes_jax/{next(_calls)}"
    if not is_first():
        said = json.loads(_wait_for(key))
        if "error" in said:
            raise InputError(said["error"])
        return said["value"]
    try:
        value = make()
    except InputError as error:
        global_state.client.key_value_set(key, json.dumps({"error": str(error)}))
        raise
    global_state.client.key_value_set(key, json.dumps({"value": value}))
    return value


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """Context in which process 0 goes first and the others follow, for what it leaves in a cache for them."""
    if not is_first():
        from_first(lambda: None)
    yield
    if is_first():
        from_first(lambda: None)


def check_same(what: str, facts: Mapping[str, Any], advice: str) -> None:
    """Compares what all processes hold.

    Args:
        what: they are facts of, for the message.
        facts: JSON values by name.
        advice: what to do if they differ.

    Raises:
        InputError: in all processes, if they do not hold the same.
    """
    everyone = gather(dict(facts))
    for other, others in enumerate(everyone):
        differing = sorted(
            name for name in everyone[0].keys() | others.keys() if everyone[0].get(name) != others.get(name)
        )
        if differing:
            name = differing[0]
            raise InputError(
                f"{what}: process {other} has {name} {_short(others.get(name))}, and process 0 has "
                f"{_short(everyone[0].get(name))} ({len(differing)} such differences). {advice}"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"


class Wishes(NamedTuple):
    """What a process would have all of them do at a step; of several processes' the greatest counts."""

    stop: int = 0
    """Number of the signal that has come, or 0."""
    old_at: int = 0
    """This step where the last checkpoint is old; else 0."""
    untold: int = 0
    """Clips left out that the others do not know of."""


class Agreement:
    """What all processes wish for at a step, the same in each of them, two steps after it was first wished for.

    Each call puts the wishes on the devices and queues their maximum behind the steps that are under way, so that
    nothing waits. In a run of one process they are returned as they come.
    """

    def __init__(self) -> None:
        self._under_way: deque[jax.Array] = deque()

    @cached_property
    def _mesh(self) -> Mesh:
        return jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))

    @cached_property
    def _maximum(self) -> Callable[[jax.Array], jax.Array]:
        whole = NamedSharding(self._mesh, PartitionSpec())
        return jax.jit(lambda wishes: wishes.max(axis=0), out_shardings=whole)

    def __call__(self, wishes: Wishes) -> Wishes:
        """To be called at every step by every process."""
        if not several():
            return wishes
        sharding = NamedSharding(self._mesh, PartitionSpec("devices"))
        mine = np.asarray([wishes], np.int32)
        everyone = jax.make_array_from_callback((self._mesh.size, len(wishes)), sharding, lambda index: mine)
        with jax.set_mesh(self._mesh):
            self._under_way.append(self._maximum(everyone))
        if len(self._under_way) <= _LAG:
            return Wishes()
        return Wishes(*np.asarray(self._under_way.popleft()).tolist())


@contextmanager
def ending_together() -> Iterator[None]:
    """Context of a run: all processes leave it together; where one of them ends early (`tell_of_the_end`), all do.

    A process that dies without a word is noticed by JAX (`launch.HEARTBEAT_TIMEOUT_SECONDS`), which ends the others.
    """
    if not several():
        yield
        return
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(over,), name="other-processes", daemon=True)
    watcher.start()
    try:
        yield
        gather(None)  # process 0 may still be writing, and its service is needed until the last has heard of that
    except (InputError, Interrupted):
        raise
    except Exception:
        time.sleep(_PATIENCE_SECONDS)  # where this comes of another's end, the watcher hears of it meanwhile
        raise
    finally:
        over.set()
        watcher.join()
    jax.distributed.shutdown()


def tell_of_the_end(status: int, reason: str) -> None:
    """Has all other processes end, with the same status; returns when they have heard of it, or soon after.

    Args:
        status: exit status.
        reason: a line for their logs.
    """
    client = global_state.client
    with suppress(jax.errors.JaxRuntimeError):  # another was quicker, or nobody listens any more
        client.key_value_set(_END, json.dumps({"process": index(), "status": status, "reason": reason}))
    with suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_LEFT}/{index()}", "")
        deadline = time.monotonic() + _GRACE_SECONDS
        while len(client.key_value_dir_get(_LEFT)) < count() and time.monotonic() < deadline:
            time.sleep(0.1)
    _leave_last()


def _leave_last() -> None:
    """Lets the others go first where this is process 0, as JAX aborts a process that loses the service it runs."""
    if is_first():
        time.sleep(2 * _POLL_SECONDS)


def _watch(over: threading.Event) -> None:
    """Ends this process when another has told of the end."""
    client, answered = global_state.client, time.monotonic()
    while not over.wait(_POLL_SECONDS):
        try:
            end = json.loads(client.key_value_try_get(_END))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                answered = time.monotonic()
                continue
            if time.monotonic() - answered < _SILENCE_SECONDS:
                continue
            end = {"process": 0, "status": 1, "reason": f"it no longer answers ({str(error).splitlines()[0]})"}
        if over.is_set() or end["process"] == index():
            return
        print(f"[process {index()}] Process {end['process']} has ended the run: {end['reason']}", file=sys.stderr)
        with suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(f"{_LEFT}/{index()}", "")
        _leave_last()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(end["status"])


def _wait_for(key: str) -> str:
    """A value that another process sets. In short waits, between which a signal is heard."""
    _waiting.set()
    try:
        while True:
            try:
                return global_state.client.blocking_key_value_get(key, int(_POLL_SECONDS * 1000))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
    finally:
        _waiting.clear()
