"""How many of the machine's processors this process may use."""

import os


def available_cpus() -> int:
    """Cores that this process may run on: where a cpuset or `taskset` sets some aside, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
