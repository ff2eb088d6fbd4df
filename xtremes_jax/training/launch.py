"""How the processes of one run find each other: told by flags, or by Slurm, Kubernetes, a TPU pod or Open MPI."""

import importlib.util
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax

from xtremes_jax.errors import InputError

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_SECONDS = 300

HEARTBEAT_TIMEOUT_SECONDS = 40
"""After so long without a sign of life a process counts as lost, and JAX ends the others."""

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_SLURM_PORTS = range(61440, 65536)


@dataclass(frozen=True)
class Launch:
    """One process's place in a run of several; what is None is found out by JAX."""

    coordinator_address: str | None = None
    """Host and port of process 0."""
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None
    """Of the GPUs that this process uses; None for all that it sees."""
    may_be_alone: bool = False
    """Where JAX finds no others, there are none: a single TPU host need not say so."""


def find_launch(
    address: str | None,
    count: int | None,
    index: int | None,
    *,
    environment: Mapping[str, str] = os.environ,
    on_tpu: bool = False,
) -> Launch | None:
    """The place of this process; None if the run has no other.

    What flags say counts before the environment. There `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` are looked for (or `JOB_COMPLETION_INDEX`, which Kubernetes sets in an indexed Job), then what
    Slurm's `srun` sets. On TPU hosts, in an indexed Job without these variables, and under Open MPI's `mpirun`, JAX
    finds out by itself.

    Args:
        address, count, index: the flags `--coordinator_address`, `--num_processes` and `--process_id`.
        environment: variables of this process.
        on_tpu: whether it is to run on a TPU of this machine.

    Raises:
        InputError: only some of what is needed is said, or it is no number.
    """
    if count == 1:
        return None
    if (address, count, index) != (None, None, None):
        return _complete(
            {"--coordinator_address": address, "--num_processes": count, "--process_id": index}, "the command line"
        )
    if "JAX_COORDINATOR_ADDRESS" in environment:
        process_id = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
        names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", process_id
        if environment.get("JAX_NUM_PROCESSES") == "1":
            return None
        return _complete({name: environment.get(name) for name in names}, "the environment")
    if all(name in environment for name in _SLURM):
        return _of_slurm(environment)
    in_indexed_job = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    under_mpi = _number("OMPI_COMM_WORLD_SIZE", environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    if in_indexed_job or under_mpi:
        return Launch()
    return Launch(may_be_alone=True) if on_tpu else None


def has_tpu() -> bool:
    """Whether this machine has a TPU that JAX can use and may use; asks no backend."""
    if (jax.config.jax_platforms or "tpu").split(",")[0] != "tpu" or importlib.util.find_spec("libtpu") is None:
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def join(launch: Launch | None) -> None:
    """Joins the other processes; nothing happens if there are none. To be called before anything asks for devices.

    Raises:
        InputError: they cannot be found. Where some do not come in time, the process ends with status 2 and says so.
    """
    if launch is None or jax.distributed.is_initialized():
        return
    # Signals are this package's matter (`signals.py`); JAX's service would take SIGTERM away from it.
    jax.config.update("jax_enable_preemption_service", False)
    known = launch.process_id is not None
    place = f"process {launch.process_id} of {launch.num_processes}" if known else "one of several processes"
    logger.info("This is %s; waiting for the others, for %d s at most", place, JOIN_TIMEOUT_SECONDS)
    if launch.process_id:
        _wait_for_first(launch.coordinator_address)
    try:
        with _in_time(launch.coordinator_address):
            jax.distributed.initialize(
                launch.coordinator_address,
                launch.num_processes,
                launch.process_id,
                launch.local_device_ids,
                cluster_detection_method="deactivate" if known else None,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
                initialization_timeout=2 * JOIN_TIMEOUT_SECONDS,
            )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        if launch.may_be_alone and not jax.distributed.is_initialized():
            logger.info("JAX finds no other hosts of this TPU: %s", error)
            return
        raise _not_found(launch.coordinator_address, error) from error


@contextmanager
def _in_time(address: str | None) -> Iterator[None]:
    """Context that ends the process where the others have not come in time: JAX would abort it, with a stack in C++."""

    def give_up() -> None:
        lacking = TimeoutError(f"not all of them have come within {JOIN_TIMEOUT_SECONDS} s")
        print(f"error: {_not_found(address, lacking)}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(JOIN_TIMEOUT_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _wait_for_first(address: str) -> None:
    """Waits until process 0 can be reached. Without its service JAX would end this process, and not with a sentence."""
    host, _, port = address.rpartition(":")
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() - begun > JOIN_TIMEOUT_SECONDS:
                raise _not_found(address, error) from error
        time.sleep(0.5)


def _not_found(address: str | None, error: Exception) -> InputError:
    where = address or "the address that JAX has found out"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"The processes of this run do not find each other at {where}: {reason.rstrip('.')}. Start all of them, with "
        "the same --coordinator_address (host:port of process 0, which the others can reach) and --num_processes, and "
        "each with its own --process_id from 0 on. A run of one process alone is --num_processes 1."
    )


def _complete(said: Mapping[str, str | int | None], where: str) -> Launch:
    """A launch of three values, in this order: address, number of processes, this one's number."""
    lacking = [name for name, value in said.items() if value is None]
    if lacking:
        raise InputError(
            f"A run of several processes needs {', '.join(said)}, and {where} lacks {' and '.join(lacking)}. Give all "
            "three to each process, or none and start them with srun; a run of one process needs none."
        )
    address, count, index = said.values()
    names = list(said)
    count, index = _number(names[1], count), _number(names[2], index)
    if not re.fullmatch(r".+:\d+", str(address)):
        raise InputError(f"{names[0]} {address} is no host and port, such as 10.0.0.1:8476.")
    if not 0 <= index < count:
        raise InputError(f"{names[2]} {index} is not below {names[1]} {count}: processes are numbered from 0 on.")
    return Launch(str(address), count, index)


def _of_slurm(environment: Mapping[str, str]) -> Launch | None:
    """The place that `srun` gives; JAX's own detection would leave all GPUs but one idle with one task a node."""
    job, count, index, local = (
        _number(name, environment[name]) for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    )
    step = _number("SLURM_STEP_ID", environment.get("SLURM_STEP_ID", "0"))
    if count == 1:
        return None
    # "gpu[07-09,12],cpu3" begins with gpu07.
    nodes = environment["SLURM_STEP_NODELIST"]
    first = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    if first is None:
        raise InputError(f"SLURM_STEP_NODELIST {nodes!r} names no node. Give --coordinator_address and the like.")
    address = f"{first[1]}{first[2] or ''}:{_SLURM_PORTS[(job + step) % len(_SLURM_PORTS)]}"
    one_a_node = environment.get("SLURM_STEP_NUM_NODES") == str(count)
    bound = environment.get("CUDA_VISIBLE_DEVICES", "").count(",") == 0 and "CUDA_VISIBLE_DEVICES" in environment
    return Launch(address, count, index, None if one_a_node or bound else (local,))


def _number(name: str, value: str | int) -> int:
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{name} {value!r} is no whole number.") from None
