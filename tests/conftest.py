"""Shared by all tests: no network, CPU only, nothing written outside the test's own folder."""

import os

# Set before anything imports jax, datasets or huggingface_hub.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the time of these tests: without LLVM's optimisation it takes a quarter.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
# No test sees what another, or an earlier run, has compiled, and none writes to the home directory.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pytest


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers that differ from test to test and are the same in every run."""
    return np.random.default_rng(abs(hash_of(request.node.nodeid)))


def hash_of(text: str) -> int:
    """A hash that, unlike `hash`, is the same in every process."""
    import zlib

    return zlib.crc32(text.encode())
