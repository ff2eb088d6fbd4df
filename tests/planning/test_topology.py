"""Hardware by name: what is not there is refused with a sentence, before JAX or libtpu is asked."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
from runs import ROOT

from xtremes_jax.errors import InputError
from xtremes_jax.planning import topology
from xtremes_jax.planning.topology import GPUS, PRECISIONS, SLICES, TPUS, find_target


@pytest.fixture(autouse=True)
def begun():
    """JAX has its devices, as no test may change how many there are."""
    return jax.devices()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e:3x5", "no slice 3x5 of v5e. Choose one of 1x1, 2x2, 2x4"),
        ("v4:2x2", "no slice 2x2 of v4. Choose one of 2x2x1, 2x2x2"),
        ("v9", "v9 is not known"),
        ("v9:2x2", "v9:2x2 is not known"),
        ("v5e", "v5e is not known"),
        ("v5e:", "Give a kind of device and a size"),
        ("h10:8", "did you mean h100"),
        ("", "is not known"),
        (":8", "is not known"),
        ("cpu:0", "0 is no number of devices"),
        ("cpu:-1", "-1 is no number of devices"),
        ("cpu:8x8", "8x8 is no number of devices"),
        ("cpu:1e9", "1e9 is no number of devices"),
        ("gpu:٣", "is no number of devices"),
        ("gpu:99999999999", "is no number of devices"),
        ("cpu:65", "from 1 to 64"),
    ],
)
def test_what_is_not_there_is_refused(name, said):
    with pytest.raises(InputError) as refusal:
        find_target(name)
    assert said.lower() in str(refusal.value).lower() and f"--topology {name}" in str(refusal.value)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'compiled by libtpu, which is not installed.*pip install "jax\[tpu\]"'):
        find_target("v5e:2x4")


def test_more_devices_than_the_process_has_are_refused():
    with pytest.raises(InputError, match="this process has .* simulated devices"):
        find_target(f"cpu:{len(jax.devices()) + 1}")


def test_a_processor_is_measured():
    target = find_target("cpu:1")
    assert (target.platform, target.is_proxy, len(target.devices)) == ("cpu", False, 1)
    assert 1e8 < target.chip.flops_per_s["float32"] < 1e14 and 1e7 < target.chip.bytes_per_s < 1e13
    assert target.chip.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_gpus_are_simulated():
    target = find_target("gpu:1")
    assert target.is_proxy and target.platform == "gpu" and target.chip is GPUS["h100"] and target.processes == 1
    assert find_target("a100:1").chip is GPUS["a100"]


def test_figures_of_chips_are_in_the_right_order():
    """Of magnitude, and of precision: a slip in a unit would show."""
    for chip in (*TPUS.values(), *GPUS.values()):
        rates = chip.flops_per_s
        assert tuple(rates) == PRECISIONS and 1e14 <= rates["float16"] <= 1e15
        assert rates["float16"] >= rates["default"] >= rates["float32"] > 1e13
        assert rates["bfloat16"] == rates["float32" if "V100" in chip.kind else "float16"]  # Volta has none of bfloat16
        assert chip.bytes_per_s is None or 5e11 < chip.bytes_per_s < 5e12
        assert 15 * 2**30 <= chip.memory <= 110 * 2**30 and 1e11 < chip.sent_bytes_per_s < 1e12
    assert set(SLICES) == set(TPUS)
    assert topology.NAMES[: len(TPUS)] == tuple(TPUS)


COMPILED = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from xtremes_jax.planning.cost import compile_and_measure
from xtremes_jax.planning.topology import find_target
from xtremes_jax.training.sharding import make_mesh

counts = {}
for name in ("v5e:1x1", "v4:2x2x1", "v5e:2x4", "v6e:4x4", "v5p:2x2x2"):
    slice = find_target(name)
    counts[name] = len(slice.devices), slice.processes
assert dict(make_mesh(8, find_target("v6e:4x4").devices).shape) == {"data": 2, "fsdp": 8}  # half of two axes
target = find_target("v5e:2x4")
mesh = make_mesh(1, target.devices)
rows = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data")))
kernel = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
step = jax.jit(lambda x, k: jnp.sum(x @ k, 0, dtype=jnp.float32), out_shardings=NamedSharding(mesh, PartitionSpec()))
cost = compile_and_measure(step.lower(rows, kernel), target)
wide = jax.ShapeDtypeStruct((8 * 2**20, 4096), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
refused = compile_and_measure(jax.jit(lambda x: jnp.sort(x, 1) @ x.T[:, :1024]).lower(wide), target)
print(json.dumps([counts, cost._asdict() if hasattr(cost, "_asdict") else vars(cost), vars(refused)]))
"""


def test_tpus_are_compiled_for_by_libtpu_or_it_is_asked_for():
    """With libtpu, a program whose cost is known by hand; without it, the sentence that names it."""
    if importlib.util.find_spec("libtpu") is None:
        with pytest.raises(InputError, match="libtpu, which is not installed"):
            find_target("v5e:1x1")
        return
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts, cost, refused = json.loads(done.stdout.splitlines()[-1])
    assert counts == {"v5e:1x1": [1, 1], "v4:2x2x1": [4, 1], "v5e:2x4": [8, 1], "v6e:4x4": [16, 2], "v5p:2x2x2": [8, 2]}
    assert cost["flops"] == 2 * 128 * 512 * 256
    assert cost["sent"] == 2 * 256 * 4 * 7 / 8 and cost["collectives"] == 1
    assert cost["code"] > 0
    assert cost["needed"] >= 2 * (128 * 512 + 512 * 256) + 4 * 256 and cost["refused"] is None
    assert refused["needed"] > 15.75 * 2**30 and "HBM" in refused["refused"].upper()
