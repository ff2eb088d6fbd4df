"""Whole runs on small corpora: their command lines, and what they have written."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def flags(corpus: Path, output: Path, config: str, **changes) -> list[str]:
    """A short run's command line; None drops a flag."""
    values = {
        "config_name": corpus / "tiny.json", "dataset_name": corpus, "dataset_config_name": config,
        "cache_dir": corpus / "cache", "output_dir": output, "do_train": True, "do_eval": True,
        "freeze_feature_encoder": False, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "max_steps": 4, "learning_rate": 2e-3, "logging_steps": 1, "max_buckets": 2, "group_by_length": True,
        "disable_tqdm": True, **changes,
    }  # fmt: skip
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run_elsewhere(arguments: list[str], **environment) -> subprocess.CompletedProcess:
    """The same command in a process of its own."""
    command = [sys.executable, "-m", "xtremes_jax.train", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def run_on_eight_devices(script: str) -> str:
    """Runs a script in a process of its own that sees eight CPU devices; returns what it prints."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def parameters(output: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(output / "model.safetensors")
