"""Cores that a process may use, which are not all that the machine has."""

import os

from xtremes_jax.processors import available_cpus


def test_only_the_cores_that_may_be_used_count(monkeypatch):
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cpus() == len(allowed)
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    for cores, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert available_cpus() == expected
