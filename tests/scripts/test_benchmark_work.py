"""The benchmarks' arithmetic: floating-point operations against XLA's count, random batches, quantiles."""

import dataclasses

import jax
import numpy as np
import pytest
from benchmarks.contenders import median_and_spread
from benchmarks.work import Work, forward_flops, training_flops

from xtremes_jax.models import abstract_model, split_params
from xtremes_jax.models.model import merge


@pytest.mark.parametrize("head", ["ctc", "classification"])
def test_flops_are_those_that_xla_counts(head):
    """With one layer a scanned body is counted once as it should be; what is not a product is a few per cent.

    So are the positional convolution's products with padding, which XLA does not count: more of all in shorter clips.
    """
    config = dataclasses.replace(Work("base", head=head).model_config(), num_hidden_layers=1)
    graphdef, params = split_params(abstract_model(config))
    audio = jax.ShapeDtypeStruct((2, 48_000), np.int16)
    compiled = jax.jit(lambda params, audio: merge(graphdef, params)(audio).logits).lower(params, audio).compile()
    counted = compiled.cost_analysis()["flops"]
    assert forward_flops(config, 2, 48_000).total == pytest.approx(counted, rel=0.05)


def test_a_training_step_costs_three_forward_passes_less_the_frozen_part():
    config = Work("base").model_config()
    forward = forward_flops(config, 4, 160_000)
    trained = training_flops(config, 4, 160_000, freeze_feature_encoder=False)
    frozen = training_flops(config, 4, 160_000, freeze_feature_encoder=True)
    assert trained.total == pytest.approx(3 * forward.total)
    assert trained.total - frozen.total == pytest.approx(2 * forward.front_end + forward.projection)


def test_batches_are_random_and_padded_with_zeros():
    work = Work("tiny", batch=3, seconds=1.5, raggedness=0.5)
    first, second = work.batches(2)
    assert first.audio.shape == (3, 24_000) and first.audio_lengths.max() == 24_000
    assert (first.audio != second.audio).any() and first.audio.std() > 300
    for row in range(3):
        assert not first.audio[row, first.audio_lengths[row] :].any()
        assert first.labels[row, : first.label_lengths[row]].all()
        assert not first.labels[row, first.label_lengths[row] :].any()
    np.testing.assert_array_equal(first.audio, work.batches(1)[0].audio)


def test_median_and_spread():
    assert median_and_spread([5.0, 1.0, 3.0]) == (3.0, 1.0)
    assert median_and_spread([2.0]) == (2.0, 0.0)
