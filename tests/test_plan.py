"""Whole plans: their figures against closed forms, and against the same step lowered by other code."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from benchmarks.lowering import Setting, abstract_network, lower_train_step
from runs import ROOT, run_on_eight_devices

from xtremes_jax import plan
from xtremes_jax.arguments import parse_plan_arguments
from xtremes_jax.models import PRESETS, abstract_model, flatten_params, is_feature_encoder, split_params
from xtremes_jax.training import sharding

FLAGS = ["--config_name", "tiny", "--task", "mls", "--output_dir", "never_made", "--do_train", "--disable_tqdm"]

MEMORY = 12 * 2**20
"""Of a machine so small that a few clips fill it."""


def planned(*flags, topology="cpu:1"):
    jax.devices()  # no test may change how many there are
    return plan.run(parse_plan_arguments([*FLAGS, "--topology", topology, *flags]))


@pytest.fixture(scope="module")
def whole():
    """A plan with everything in it, on one device."""
    return planned(
        "--planned_buckets", "1", "2:9", "--do_eval", "--group_by_length", "--per_device_train_batch_size", "2",
        "--per_device_eval_batch_size", "3", "--num_train_epochs", "4",
    )  # fmt: skip


def test_every_bucket_of_every_step_is_there(whole):
    shown = [(b["role"], b["seconds"], b["rows"], b["labels"], b["times"]) for b in whole["buckets"]]
    # 9 clips of 2 s, 2 of 1 s: the fifth batch of long ones is filled up with a short one.
    assert shown == [
        ("train", 2.0, 2, 32, 5),
        ("train", 1.0, 2, 16, 1),
        ("eval", 2.0, 3, 32, 1),
        ("eval", 1.0, 3, 16, 1),
    ]
    assert (whole["steps_per_epoch"], whole["total_steps"]) == (6, 24)
    assert whole["fits"] and not (ROOT / "never_made").exists()


def test_parameters_and_moments_are_those_of_the_model(whole):
    config = Setting(vocab_size=64).model_config()
    flat = flatten_params(split_params(abstract_model(config))[1])
    frozen = sum(leaf.size for name, leaf in flat.items() if is_feature_encoder(name))
    trained = sum(leaf.size for leaf in flat.values()) - frozen
    # AdamW has two moments of each trained parameter, and counts its updates twice: for itself, and for the schedule.
    assert whole["per_device"] == {"trainable": 4 * trained, "frozen": 4 * frozen, "optimizer": 8 * trained + 8}


def test_memory_and_products_are_those_of_the_same_step_lowered_elsewhere(whole):
    """By the benchmarks' own lowering, which shares neither loader nor flags with a plan."""
    setting = Setting(config="tiny", rows=2, seconds=2.0, vocab_size=64)
    mesh = sharding.make_mesh()
    lowered = lower_train_step(setting, mesh)
    assert abstract_network(setting, mesh).state.trainable
    memory = lowered.compile().memory_analysis()
    bucket = whole["buckets"][0]
    labels = 2 * 4 * (bucket["labels"] - setting.labels)
    found = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + labels
    assert bucket["cost"]["needed"] - bucket["cost"]["temporary"] == pytest.approx(found, abs=16)
    assert bucket["cost"]["temporary"] == pytest.approx(memory.temp_size_in_bytes, rel=0.02)


def test_an_epoch_takes_its_steps(whole):
    train = [bucket for bucket in whole["buckets"] if bucket["role"] == "train"]
    assert whole["epoch_seconds"] == sum(bucket["times"] * bucket["step_seconds"] for bucket in train) > 0
    rate, moved = whole["chip"]["flops_per_s"]["default"], whole["chip"]["bytes_per_s"]
    for bucket in train:
        cost = bucket["cost"]
        assert bucket["step_seconds"] == pytest.approx(max(cost["flops"] / rate / 0.5, cost["moved"] / moved))


def test_scoring_has_the_optimizers_state_beside_it(whole):
    batch = 3 * (2 * 16_000 * 2 + 4 * (32 + 4))
    evaluation = next(bucket for bucket in whole["buckets"] if bucket["role"] == "eval")
    assert evaluation["resident"] == whole["per_device"]["optimizer"] + 2 * batch
    assert whole["buckets"][0]["resident"] == 2 * 2 * (2 * 16_000 * 2 + 4 * (32 + 4))
    assert evaluation["peak"] == evaluation["cost"]["needed"] + evaluation["resident"]


@pytest.fixture
def small_memory(monkeypatch):
    """A machine so small that a few clips fill it."""
    real = plan.find_target

    def shrunk(name):
        target = real(name)
        return dataclasses.replace(target, chip=dataclasses.replace(target.chip, memory=MEMORY))

    monkeypatch.setattr(plan, "find_target", shrunk)


def test_what_is_printed(small_memory, capsys, tmp_path):
    planned(
        "--planned_buckets", "1:30", "--find_batch", "--bf16", "--per_device_train_batch_size", "2", "--json",
        str(tmp_path / "new" / "plan.json"), topology="v100:1",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "mls with tiny on v100:1: 1 x NVIDIA V100" in printed
    assert re.search(r"train +1\.00 +2 +16 +15 ", printed)
    assert "An epoch: 15 steps" in printed and "memory, FLOPs and bytes sent are those of the program" in printed
    found = json.loads((tmp_path / "new" / "plan.json").read_text("utf-8"))
    assert found["precision"] == "half" and found["arguments"]["bf16"] is True
    largest = found["found_batch"]
    assert f"--per_device_train_batch_size {largest['value']}" in printed
    tried = {trial["rows"]: trial for trial in largest["trials"]}
    assert list(tried)[:3] == [2, 4, 8] and len(tried) == len(largest["trials"])
    assert tried[largest["rows"]]["fits"] and not tried[largest["rows"] + 1]["fits"]


@pytest.mark.parametrize("flag", ["--per_device_train_batch_size 4", "--max_batch_seconds 4"])
def test_the_largest_batch_is_the_last_that_fits(flag, small_memory, capsys):
    found = planned("--planned_buckets", "1", "--max_duration_in_seconds", "3", "--find_batch", *flag.split())[
        "found_batch"
    ]
    tried = {trial["rows"]: trial for trial in found["trials"]}
    largest = found["rows"]
    assert tried[largest]["fits"] and not tried[largest + 1]["fits"] and found["value"] == largest
    peaks = [tried[rows]["peak"] for rows in sorted(tried)]
    assert peaks == sorted(peaks) and tried[largest]["peak"] <= MEMORY < tried[largest + 1]["peak"]
    assert f"--max_batch_seconds {largest}" in capsys.readouterr().out


def test_what_does_not_fit_is_said(small_memory, capsys):
    found = planned("--planned_buckets", "2", "--per_device_train_batch_size", "64")
    assert not found["fits"] and "DOES NOT FIT: train 2.00 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--topology v5e:3x5", "no slice 3x5 of v5e"),
        ("--topology v9", "v9 is not known"),
        ("--topology cpu:0", "0 is no number of devices"),
        ("--topology cpu:8 --planned_buckets 5 --fsdp_devices 3", "--fsdp_devices 3 does not divide the 8 devices"),
    ],
)
def test_errors_are_sentences_and_status_2(line, said):
    command = [sys.executable, "-m", "xtremes_jax.plan", *FLAGS, *line.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


SPLIT = """
    import json
    from xtremes_jax import plan
    from xtremes_jax.arguments import parse_plan_arguments

    for ways in (1, 4):
        flags = FLAGS + ["--topology", "cpu:8", "--fsdp_devices", str(ways), "--planned_buckets", "1"]
        print("found", json.dumps(plan.run(parse_plan_arguments(flags))))
"""


def test_bytes_on_each_of_eight_devices_whole_and_split():
    """Whole parameters lie on every device; of those that are split, a fourth, and so it is with their moments."""
    flags = [*FLAGS[:1], "small", *FLAGS[2:], "--per_device_train_batch_size", "1", "--freeze_feature_encoder", "False"]
    printed = run_on_eight_devices(SPLIT.replace("FLAGS", repr(flags)))
    whole, split = (json.loads(line.split(" ", 1)[1]) for line in printed.splitlines() if line.startswith("found "))
    config = Setting(config="small", vocab_size=64).model_config()
    assert PRESETS["small"].hidden_size == config.hidden_size
    shapes = [leaf.shape for leaf in flatten_params(split_params(abstract_model(config))[1]).values()]
    everything = sum(map(math.prod, shapes))
    pieces = sum(
        math.prod(shape) // (4 if math.prod(shape) >= 2**16 and any(size % 4 == 0 for size in shape) else 1)
        for shape in shapes
    )
    assert whole["per_device"] == {"trainable": 4 * everything, "frozen": 0, "optimizer": 8 * everything + 8}
    assert split["per_device"] == {"trainable": 4 * pieces, "frozen": 0, "optimizer": 8 * pieces + 8}
    assert (whole["mesh"], split["mesh"]) == ({"data": 8, "fsdp": 1}, {"data": 2, "fsdp": 4})
    # Every gradient is summed once over all devices, on rings, and little else is sent.
    sent = whole["buckets"][0]["cost"]["sent"]
    assert sent == pytest.approx(2 * 4 * everything * 7 / 8, rel=0.01)
    assert split["buckets"][0]["cost"]["needed"] < whole["buckets"][0]["cost"]["needed"]
    assert np.isfinite(split["epoch_seconds"])
