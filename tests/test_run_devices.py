"""The same run on one device and on eight simulated ones."""

import os
import shutil
from dataclasses import make_dataclass

import numpy as np
import pytest
from corpora import write_corpus
from runs import flags, rows, run_elsewhere

from xtremes_jax import train
from xtremes_jax.course import BatchSplit, with_the_same_batches


def test_eight_devices_give_the_losses_of_one(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    noisy = dict(hidden_dropout=0.1, mask_time_prob=0.3, mask_feature_prob=0.1, do_eval=None, save_strategy="no")
    noisy["max_buckets"] = 1
    one = flags(corpus, tmp_path / "one", "mls.all", **noisy, per_device_train_batch_size=8)
    split = dict(per_device_train_batch_size=1)
    many = flags(corpus, tmp_path / "many", "mls.all", **(noisy | split), gradient_accumulation_steps=1)
    sharded = flags(corpus, tmp_path / "sharded", "mls.all", **(noisy | split), fsdp_devices=4)
    assert train.main(one) == 0
    expected = [row["loss"] for row in rows(tmp_path / "one" / "metrics.jsonl")]
    for arguments, name in ((many, "many"), (sharded, "sharded")):
        done = run_elsewhere(arguments, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8")
        assert done.returncode == 0, done.stderr
        losses = [row["loss"] for row in rows(tmp_path / name / "metrics.jsonl")]
        np.testing.assert_allclose(losses, expected, rtol=1e-4)


def devices(count):
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"


def test_a_run_goes_on_with_more_and_with_fewer_devices(tmp_path):
    """Steps 1 and 2 on one device, 3 and 4 on four, 5 and 6 on two with split parameters: batches and losses stay."""
    corpus = write_corpus(tmp_path / "corpus")
    changes = dict(
        hidden_dropout=0.1, layerdrop=0.1, mask_time_prob=0.3, do_eval=None, save_steps=2, max_steps=6, max_buckets=1,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main(flags(corpus, whole, "mls.all", **changes)) == 0
    (parts / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / "2", parts / "checkpoints" / "2")
    for name in ("metrics.jsonl", "batches.jsonl"):
        shutil.copy(whole / name, parts / name)

    done = run_elsewhere(flags(corpus, parts, "mls.all", **changes), XLA_FLAGS=devices(4))
    assert done.returncode == 0, done.stderr
    assert "On 4, 1 micro-batches of 2 clips a device make the same batches" in done.stderr
    shutil.rmtree(parts / "checkpoints" / "6")
    done = run_elsewhere(flags(corpus, parts, "mls.all", **changes, fsdp_devices=2), XLA_FLAGS=devices(2))
    assert done.returncode == 0, done.stderr
    assert "Going on from step 4" in done.stderr
    assert "On 2, 1 micro-batches of 4 clips a device make the same batches" in done.stderr

    assert rows(parts / "batches.jsonl") == rows(whole / "batches.jsonl")
    losses = [[row["loss"] for row in rows(folder / "metrics.jsonl")] for folder in (parts, whole)]
    assert len(losses[1]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_run_that_is_stopped_again_and_again_keeps_its_batches(seconds):
    """Sixteen clips a step on four devices; the same command on two, twice, on one, and on four again."""
    training = make_dataclass("Training", ["per_device_train_batch_size", "gradient_accumulation_steps"])(4, 1)
    command = make_dataclass("Arguments", ["training", "data"])(
        training, make_dataclass("Data", ["max_batch_seconds"])(seconds)
    )
    asked = split = BatchSplit(4, 1)
    before, splits = 4, []
    for devices in (4, 2, 2, 1, 1, 4, 4):
        progress = {"asked": asked._asdict(), "split": split._asdict(), "devices": before}
        split, before = BatchSplit.of(with_the_same_batches(command, progress, devices)), devices
        splits.append(split)
    assert splits == [(4, 1), (4, 2), (4, 2), (4, 4), (4, 4), (4, 1), (4, 1)]
