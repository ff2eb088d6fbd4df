"""The same run on one device and on eight simulated ones."""

import os

import numpy as np
from corpora import write_corpus
from runs import flags, rows, run_elsewhere

from xtremes_jax import train


def test_eight_devices_give_the_losses_of_one(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    noisy = dict(hidden_dropout=0.1, mask_time_prob=0.3, mask_feature_prob=0.1, do_eval=None, save_strategy="no")
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
