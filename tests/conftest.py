"""Shared by all tests: no network, CPU only, nothing written outside the test's own folder."""

import os
import shutil
import tempfile
import zlib
from importlib import metadata
from pathlib import Path

# Set before anything imports jax, datasets or huggingface_hub.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the time of these tests: without LLVM's optimisation it takes a quarter, and with XLA's older way
# of writing fused loops a third of that. One test compiles as users do (models/test_golden.py).
QUICK = ["--xla_backend_optimization_level=0"]
if metadata.version("jax").startswith("0.10."):  # XLA ends the process at a flag that it does not know
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*os.environ.get("XLA_FLAGS", "").split(), *QUICK])
# Runs of one shape compile the same programs: they share them within one call of pytest, and none is kept after it.
COMPILED = "JAX_COMPILATION_CACHE_DIR"
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ[COMPILED] = tempfile.mkdtemp(prefix="xtremes-jax-tests-")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(8 << 30)  # with a limit, JAX locks what several processes write
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pytest


def pytest_collection_modifyitems(items):
    """Whole runs first, and what takes seconds last, so that no process is left with a long file at the end."""
    folders = [Path(__file__).parent, Path(__file__).parent / "training"]
    items.sort(key=lambda item: folders.index(item.path.parent) if item.path.parent in folders else len(folders))


def pytest_unconfigure(config):
    """The process that has made the folder of compiled programs takes it away."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ[COMPILED], ignore_errors=True)


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers that differ from test to test and are the same in every run."""
    return np.random.default_rng(abs(hash_of(request.node.nodeid)))


def hash_of(text: str) -> int:
    """A hash that, unlike `hash`, is the same in every process."""
    return zlib.crc32(text.encode())
