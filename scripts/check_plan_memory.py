#!/usr/bin/env python3
"""Compares the memory that `xtremes_jax.plan` expects with what a real run takes, on simulated CPU devices.

    python scripts/check_plan_memory.py                       a shape of some two GB on eight devices
    python scripts/check_plan_memory.py --devices 4 -- FLAGS  any run, by the flags of xtremes_jax.train

The plan is made for `cpu:8`. The run is the same command's, in a fresh process with as many simulated devices, all of
them in that process: what its resident set grows by is to be the devices' sum. It is given twice: from just before the
model is made to the highest point of any step but the first, with what the compiler leaves behind (a plan is of
devices, and knows nothing of the host's memory); and without that, as the bytes of all arrays between two steps and
what the resident set grows by from there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "model_type": "wav2vec2", "conv_dim": [32] * 7, "conv_bias": True, "feat_extract_norm": "layer",
    "do_stable_layer_norm": True, "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
    "intermediate_size": 1536, "num_conv_pos_embeddings": 32,
}  # fmt: skip
"""Mostly Transformer, as large models are: on CPUs the convolutions of a front end take memory of their own, which XLA
does not plan."""
FLAGS = (
    "--dataset_name demo --task mls --group_by_length --max_buckets 1 --per_device_train_batch_size 4 --max_steps 4 "
    "--logging_steps 1 --disable_tqdm --do_train"
).split()
RUN = """
import ctypes, json, re, sys
from pathlib import Path
import jax
import xtremes_jax.train as train

def resident(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

found, assemble, first_step = {}, train.assemble, train.StartUp.first_step

def noted(*arguments):
    found["before"] = resident("VmRSS")
    return assemble(*arguments)

def compiled(*arguments):
    first_step(*arguments)
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler has given back
    found["between"] = resident("VmRSS")
    found["arrays"] = sum(shard.data.nbytes for array in jax.live_arrays() for shard in array.addressable_shards)
    Path("/proc/self/clear_refs").write_text("5")  # the highest point so far is forgotten

class Loop:
    def __call__(self, *arguments, **options):
        result = fit(*arguments, **options)
        found["highest"] = resident("VmHWM")
        return result

train.assemble, train.StartUp.first_step, fit, train.fit = noted, compiled, train.fit, Loop()
status = train.main(sys.argv[2:])
Path(sys.argv[1]).write_text(json.dumps(found))
sys.exit(status)
"""


def main() -> int:
    """Command line; returns the exit status: 1 if the two are more than a fifth apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("flags", nargs="*", help="of xtremes_jax.train, after --; --output_dir is set here")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = Path(folder, "shape.json")
        shape.write_text(json.dumps(SHAPE), encoding="utf-8")
        flags = wanted.flags or ["--config_name", str(shape), *FLAGS]
        output = ["--output_dir", str(Path(folder, "run"))]
        plan, run = Path(folder, "plan.json"), Path(folder, "run.json")
        print("Planning …", file=sys.stderr, flush=True)
        modules = [sys.executable, "-m", "xtremes_jax.plan", "--topology", f"cpu:{wanted.devices}", "--json", str(plan)]
        subprocess.run([*modules, *flags, *output], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        print("Running …", file=sys.stderr, flush=True)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={wanted.devices}"
        subprocess.run(
            [sys.executable, "-c", RUN, str(run), *flags, *output], cwd=ROOT, check=True, env=environment,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        planned, measured = json.loads(plan.read_text("utf-8")), json.loads(run.read_text("utf-8"))
    expected = wanted.devices * max(bucket["peak"] for bucket in planned["buckets"] if bucket["role"] == "train")
    grown = measured["highest"] - measured["before"]
    of_arrays = measured["arrays"] + measured["highest"] - measured["between"]
    print(f"flags: {' '.join(flags)}")
    print(f"{f'planned peak of {wanted.devices} devices together':37} {expected / 2**20:8,.0f} MiB")
    for what, size in (("arrays, and growth in a step", of_arrays), ("growth, with what the compiler leaves", grown)):
        print(f"{what:37} {size / 2**20:8,.0f} MiB, planned / measured {expected / size:.3f}")
    return int(not 0.8 <= expected / of_arrays <= 1.2)


if __name__ == "__main__":
    sys.exit(main())
