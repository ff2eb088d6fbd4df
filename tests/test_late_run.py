"""Runs whose encoder joins later, or never: what moves when, and going on across that point."""

import json
import shutil

import numpy as np
import pytest
from corpora import write_corpus
from runs import flags, parameters

from xtremes_jax import train

PAUSE, STEPS = 2, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=12, other=4)


def late(corpus, output, **changes):
    defaults = dict(
        freeze_encoder_steps=PAUSE, save_strategy="steps", save_steps=1, max_steps=STEPS, do_eval=None, max_buckets=1,
        gradient_accumulation_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=None,
        layerdrop=0.1, hidden_dropout=0.1,
    )  # fmt: skip
    return flags(corpus, output, "minds14.all", **{**defaults, **changes})


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("late") / "run"
    assert train.main(late(corpus, output)) == 0
    return output


@pytest.mark.parametrize("step", [PAUSE - 1, PAUSE, PAUSE + 1])
def test_a_run_that_goes_on_ends_as_one_that_was_left_alone(step, undisturbed, corpus, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(output / "checkpoints" / str(later))
    (output / "model.safetensors").unlink()
    assert train.main(late(corpus, output)) == 0
    ours, theirs = ((folder / "model.safetensors").read_bytes() for folder in (output, undisturbed))
    assert ours == theirs


def test_the_encoder_stays_until_then(undisturbed, corpus, tmp_path, capsys):
    """As it does for the whole of a run with --freeze_encoder, whose optimizer holds the head's moments alone."""
    only, whole = tmp_path / "only", tmp_path / "whole"
    halted = dict(max_steps=PAUSE, lr_scheduler_type="constant", save_strategy="no", save_steps=None)
    assert train.main(late(corpus, whole, **halted)) == 0
    frozen = halted | {"freeze_encoder_steps": None, "freeze_encoder": True}
    assert f"--freeze_encoder_steps {PAUSE} is the whole run" in capsys.readouterr().err
    assert train.main(late(corpus, only, **frozen)) == 0
    told = capsys.readouterr().err
    ours, theirs = parameters(whole), parameters(only)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-6, err_msg=name)
    count = sum(value.size for name, value in theirs.items() if not name.startswith("wav2vec2."))
    results = json.loads((only / "train_results.json").read_text())
    assert (results["train_parameters"], results["train_optimizer_bytes"]) == (count, 8 * count + 8)
    total = sum(value.size for value in ours.values())
    assert f"Trained parameters: {count:,}; the optimizer's state for them: {8 * count + 8:,} bytes" in told
    results = json.loads((whole / "train_results.json").read_text())
    assert (results["train_parameters"], results["train_optimizer_bytes"]) == (total, 8 * total + 2 * 8 + 4)
    moved = parameters(undisturbed)
    assert not any(np.array_equal(moved[name], value) for name, value in theirs.items())


def test_flags_that_contradict_each_other(corpus, tmp_path, capsys):
    base = dict(config_name=None, model_name_or_path="anywhere", freeze_encoder_steps=None)
    refused = {
        "--lora_rank adapts a pretrained encoder": {"lora_rank": 2, "freeze_encoder_steps": None},
        "--lora_rank trains factors in the encoder, and --freeze_encoder": base | {"lora_rank": 2, "freeze_encoder": 1},
        "--freeze_feature_encoder False trains its front end": base | {"lora_rank": 2, "freeze_feature_encoder": False},
        "--lora_rank 0 is out of range: it must be at least 1": base | {"lora_rank": 0},
    }
    for words, changes in refused.items():
        assert train.main(late(corpus, tmp_path / "x", **changes)) == 2
        assert words in capsys.readouterr().err.replace(" 2 ", " ").replace(" True ", " "), words
