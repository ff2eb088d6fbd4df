"""Runs of several real processes on this machine, which talk to each other as those of several machines do."""

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from runs import ROOT


@dataclass
class Ended:
    """What is left of one process."""

    status: int
    output: str
    """What it printed, errors too."""
    seconds: float
    """From its start to its end."""


class Company:
    """Processes that were started together.

    Args:
        commands: a command line for each.
        devices: simulated ones of each.
        environment: more variables, for all.
    """

    def __init__(self, commands: list[list[str]], *, devices: int = 1, environment: dict[str, str] | None = None):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"} | (environment or {})
        self._folder = tempfile.TemporaryDirectory()
        self._logs = [Path(self._folder.name) / f"{index}.log" for index in range(len(commands))]
        self._begun = time.monotonic()
        self.processes = [
            self._start(command, environment, log) for command, log in zip(commands, self._logs, strict=True)
        ]

    @staticmethod
    def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
        with log.open("wb") as file:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def output(self, index: int) -> str:
        """What a process has printed so far."""
        return self._logs[index].read_text("utf-8", errors="replace")

    def wait_for(self, index: int, text: str, seconds: float = 240) -> None:
        """Waits until a process has printed something; fails if it ends without."""
        deadline = time.monotonic() + seconds
        while text not in self.output(index):
            assert self.processes[index].poll() is None and time.monotonic() < deadline, self.output(index)[-3000:]
            time.sleep(0.05)

    def wait(self, seconds: float = 600) -> list[Ended]:
        """How they ended; those that have not by then are killed, and have the status -9."""
        ended: dict[int, Ended] = {}
        while len(ended) < len(self.processes):
            for index, process in enumerate(self.processes):
                if time.monotonic() - self._begun > seconds:
                    process.kill()
                if index not in ended and process.poll() is not None:
                    lasted = time.monotonic() - self._begun
                    ended[index] = Ended(process.returncode, self.output(index), lasted)
            time.sleep(0.05)
        self._folder.cleanup()
        return [ended[index] for index in range(len(ended))]


def free_address() -> str:
    """Where process 0 can be found."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


def train_together(count: int, arguments: list[str], *, devices: int, only: dict[int, list[str]] | None = None):
    """Starts the same run in some processes; `only` has flags of single ones."""
    address = free_address()
    command = [sys.executable, "-m", "xtremes_jax.train", *arguments, "--coordinator_address", address]
    commands = [
        [*command, "--num_processes", str(count), "--process_id", str(index), *(only or {}).get(index, [])]
        for index in range(count)
    ]
    return Company(commands, devices=devices)


def talk(count: int, script: str) -> Company:
    """Starts processes that have joined each other and then run a script, in which `processes` is the module."""
    address = free_address()
    before = """
        import os, sys, time
        from xtremes_jax.errors import InputError
        from xtremes_jax.training import processes
        from xtremes_jax.training.launch import Launch, join
        join(Launch(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    """
    code = textwrap.dedent(before) + textwrap.dedent(script)
    return Company([[sys.executable, "-c", code, address, str(count), str(index)] for index in range(count)])
