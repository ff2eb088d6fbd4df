"""When a run is said to stand still, with the stacks that a real process writes."""

import subprocess
import sys
import threading
import time

import pytest

from xtremes_jax.training import processes
from xtremes_jax.training.watchdog import Watchdog

STANDS_STILL = """
import logging, time
from xtremes_jax.training.watchdog import Watchdog
logging.basicConfig(level="INFO")
def wait_for_a_slow_disk():
    time.sleep(1.5)
with Watchdog(0.5, "preparing data") as watchdog:
    left = watchdog.enter("evaluating")
    assert left == "preparing data"
    wait_for_a_slow_disk()
print("goes on")
"""


def test_the_phase_is_named_and_every_thread_shown():
    done = subprocess.run([sys.executable, "-c", STANDS_STILL], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "goes on\n"
    assert "(--stall_timeout) in this phase: evaluating" in done.stderr
    assert "in wait_for_a_slow_disk" in done.stderr
    # Told again only after as long a time: at 0.5 and 1.0 s, and perhaps at the end.
    assert done.stderr.count("--stall_timeout") in (1, 2, 3)


def test_a_process_that_waits_for_another_leaves_it_to_that_one_to_say_so(monkeypatch, caplog):
    monkeypatch.setattr(processes, "is_waiting", lambda: True)
    with Watchdog(0.1) as watchdog:
        time.sleep(0.5)
        assert time.monotonic() - watchdog._moved < 0.1  # nor is it said as soon as the waiting is over
    assert not caplog.text


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_run_that_moves_is_left_alone_and_the_thread_ends(timeout, caplog):
    with Watchdog(timeout) as watchdog:
        watchdog.beat()
        names = [thread.name for thread in threading.enumerate()]
        assert ("watchdog" in names) == (timeout is not None)
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
    assert not caplog.text
