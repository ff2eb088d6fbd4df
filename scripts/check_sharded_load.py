"""Reads a checkpoint of XLS-R-2B's shapes onto 8 simulated devices, split as `--fsdp_devices 8` splits it.

    python scripts/check_sharded_load.py [--config_name xls_r_2b] [--devices 8]

Writes the checkpoint first, of random weights, in shards of 5 GB as the hub has them: 8.7 GB of disk for XLS-R-2B.
Prints what each device holds and the peak memory of the process; exits with 1 where an array on the devices is not what
was read.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


class Drawn(Mapping):
    """Random tensors of given shapes, each drawn when it is asked for, from its name alone."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes = shapes

    def __getitem__(self, name: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return rng.random(self.shapes[name], np.float32) - np.float32(0.5)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def peak_gib() -> float:
    """Most memory that this process has held, in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def write(directory: Path, config) -> int:
    """Writes the checkpoint; the number of its bytes."""
    from xtremes_jax.models import abstract_model, flatten_params, split_params, to_huggingface, unflatten_params
    from xtremes_jax.models.weights import write_safetensors

    single = dataclasses.replace(config, num_hidden_layers=1)
    _, leaves = split_params(abstract_model(single))
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in flatten_params(leaves).items()}
    shapes = {}
    for name, tensor in to_huggingface(unflatten_params(zeros), single).items():
        layers = range(config.num_hidden_layers if ".layers.0." in name else 1)
        shapes |= {name.replace(".layers.0.", f".layers.{layer}."): tensor.shape for layer in layers}
    write_safetensors(directory, Drawn(shapes))
    (directory / "config.json").write_text(json.dumps(config.to_huggingface()), encoding="utf-8")
    return sum(path.stat().st_size for path in directory.iterdir())


def load(directory: Path, devices: int):
    """The parameters on the devices by name, the most that a device holds in bytes, and the names of wrong arrays."""
    import jax

    from xtremes_jax.arguments import ModelArguments
    from xtremes_jax.starting import configure, initial_params, starting_point
    from xtremes_jax.training import sharding

    start = starting_point(ModelArguments(model_name_or_path=str(directory)))
    config = configure(start, "ctc", {})
    params, report = initial_params(start, config, seed=0, replace_head=False)
    if report.missing or report.unexpected:
        raise SystemExit(f"The checkpoint does not fit: {report}")
    mesh = sharding.make_mesh(devices)
    placed, wrong = {}, []
    for name in list(params):  # each is let go of once it is on the devices
        value = params.pop(name)
        placed[name] = sharding.place(value, sharding.array_sharding(mesh, value.shape))
        shards = placed[name].addressable_shards
        wrong += [name for shard in shards if not np.array_equal(shard.data, value[shard.index])]
    held = {device: 0 for device in jax.devices()}
    for array in placed.values():
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return placed, max(held.values()), wrong


def main() -> int:
    """Writes, loads and compares; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config_name", default="xls_r_2b", help="a preset")
    parser.add_argument("--devices", type=int, default=8)
    arguments = parser.parse_args()
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={arguments.devices}"
    os.environ |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    from xtremes_jax.models import PRESETS

    config = dataclasses.replace(PRESETS[arguments.config_name], head="ctc", vocab_size=64)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        size = write(Path(folder), config)
        print(f"wrote {size / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s", flush=True)
        started = time.perf_counter()
        placed, held, wrong = load(Path(folder), arguments.devices)
    count = sum(array.size for array in placed.values())
    print(
        f"{count / 1e6:,.0f} M parameters, {4 * count / 1e9:.2f} GB, on {arguments.devices} devices in "
        f"{time.perf_counter() - started:.0f} s: at most {held / 1e9:.2f} GB on one "
        f"({held * arguments.devices / (4 * count):.3f} of an equal part); peak of the process {peak_gib():.1f} GiB",
        flush=True,
    )
    print(f"{len(placed)} arrays; not what was read: {wrong or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
