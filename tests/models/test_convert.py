"""The table of names: both ways, both spellings, and every refusal."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.models import ModelConfig, flatten_params, from_huggingface, to_huggingface

NORM = "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight"


@pytest.fixture
def config(tiny_config):
    return tiny_config("layer", "ctc")


@pytest.fixture
def tensors(config, random_params, rng):
    return to_huggingface(random_params(config, rng), config)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("layout", ["layer", "group"])
@pytest.mark.parametrize("head", ["ctc", "classification"])
def test_there_and_back(layout, head, tiny_config, random_params, rng):
    config = tiny_config(layout, head, use_weighted_layer_sum=True)
    params = random_params(config, rng)
    tensors = to_huggingface(params, config)
    back, report = from_huggingface(tensors, config)
    same(params, back)
    assert (report.missing, report.unexpected, report.new_head) == ((), (), ())
    assert all(array.dtype == np.float32 and array.flags["C_CONTIGUOUS"] for array in tensors.values())


def test_layouts_of_arrays(config, tensors):
    params = flatten_params(from_huggingface(tensors, config)[0])
    q = params["encoder.encoder.layers.attention.q_proj.kernel"]
    np.testing.assert_array_equal(q[1], tensors["wav2vec2.encoder.layers.1.attention.q_proj.weight"].T)
    conv = tensors["wav2vec2.feature_extractor.conv_layers.3.conv.weight"]
    ours = params["encoder.feature_extractor.conv_layers.3.conv.kernel"]
    assert ours[2, 1, 4] == conv[4, 1, 2]
    assert tensors[f"{NORM}.original0"].shape == (1, 1, 8) and tensors[f"{NORM}.original1"].shape == (12, 3, 8)


def test_old_weight_norm_and_names_without_prefix(config, tensors):
    expected, _ = from_huggingface(tensors, config)
    old = {
        name.replace("parametrizations.weight.original0", "weight_g")
        .replace("parametrizations.weight.original1", "weight_v")
        .removeprefix("wav2vec2."): array
        for name, array in tensors.items()
    }
    assert "encoder.pos_conv_embed.conv.weight_g" in old
    ours, report = from_huggingface(old, config)
    same(ours, expected)
    assert report.missing == report.unexpected == ()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_become_float32(dtype, config, tensors):
    ours, _ = from_huggingface({name: array.astype(dtype) for name, array in tensors.items()}, config)
    exact, _ = from_huggingface(tensors, config)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


def test_pretraining_leftovers_are_left_out_and_a_new_head_is_drawn(config, tensors):
    for name in ("lm_head.weight", "lm_head.bias"):
        del tensors[name]
    leftovers = ("project_hid.bias", "project_q.weight", "quantizer.codevectors", "quantizer.weight_proj.bias")
    tensors |= {name: np.zeros(3, np.float32) for name in leftovers}
    params, report = from_huggingface(tensors, config, seed=1)
    assert report.unexpected == leftovers
    assert set(report.missing) == set(report.new_head) == {"lm_head.weight", "lm_head.bias"}
    assert params["lm_head"]["kernel"].shape == (12, 9) and not params["lm_head"]["bias"].any()
    again, other = (from_huggingface(tensors, config, seed=seed)[0]["lm_head"]["kernel"] for seed in (1, 2))
    np.testing.assert_array_equal(params["lm_head"]["kernel"], again)
    assert (params["lm_head"]["kernel"] != other).any()


def test_a_recogniser_becomes_a_classifier(config, tensors):
    classifier = dataclasses.replace(config, head="classification", use_weighted_layer_sum=True)
    params, report = from_huggingface(tensors, classifier)
    assert report.unexpected == ("lm_head.bias", "lm_head.weight")
    assert {name.split(".")[0] for name in report.new_head} == {"projector", "classifier", "layer_weights"}
    np.testing.assert_allclose(params["layer_weights"], 1 / 3)


def test_another_vocabulary_is_refused_unless_the_head_is_replaced(config, tensors):
    larger = dataclasses.replace(config, vocab_size=11)
    with pytest.raises(InputError, match=r"lm_head.bias has shape \(9,\).*\(11,\).*new head"):
        from_huggingface(tensors, larger)
    params, report = from_huggingface(tensors, larger, replace_head=True)
    assert set(report.new_head) == {"lm_head.weight", "lm_head.bias"} and report.unexpected == ()
    assert params["lm_head"]["kernel"].shape == (12, 11)


def test_an_absent_mask_vector_is_drawn_and_left_out_again_without_masking(config, tensors):
    del tensors["wav2vec2.masked_spec_embed"]
    params, report = from_huggingface(tensors, config)
    assert report.missing == ("wav2vec2.masked_spec_embed",) and report.new_head == ()
    drawn = params["encoder"]["masked_spec_embed"]
    assert 0 <= drawn.min() < drawn.max() < 1
    unmasked = dataclasses.replace(config, mask_time_prob=0.0)
    assert "wav2vec2.masked_spec_embed" not in to_huggingface(params, unmasked)


@pytest.mark.parametrize(
    "name",
    [
        "wav2vec2.encoder.layers.1.attention.k_proj.bias",
        "wav2vec2.feature_extractor.conv_layers.0.layer_norm.weight",
        f"{NORM}.original1",
        "lm_head.bias",  # half a head is a damaged checkpoint, not a new head
    ],
)
def test_a_missing_tensor_is_named(name, config, tensors):
    del tensors[name]
    with pytest.raises(InputError, match=f"lacks {name}"):
        from_huggingface(tensors, config)


@pytest.mark.parametrize(
    "name",
    [
        "wav2vec2.encoder.layers.2.attention.k_proj.bias",
        "wav2vec2.encoder.layers.0.adapter_layer.norm.weight",
        "adapter.layers.0.conv.weight",
        "decoder.embed.weight",
    ],
)
def test_an_unknown_tensor_is_named(name, config, tensors):
    tensors[name] = np.zeros(3, np.float32)
    with pytest.raises(InputError, match=f"no place for: .*{name}"):
        from_huggingface(tensors, config)


def test_a_wrong_shape_is_given_with_the_right_one(config, tensors):
    tensors["wav2vec2.encoder.layer_norm.weight"] = np.zeros(13, np.float32)
    with pytest.raises(InputError, match=r"encoder.layer_norm.weight has shape \(13,\).*\(12,\)"):
        from_huggingface(tensors, config)


def test_long_lists_are_cut(config):
    with pytest.raises(InputError, match=r"lacks .* and \d+ more") as error:
        from_huggingface({"lm_head.weight": np.zeros((9, 12)), "lm_head.bias": np.zeros(9)}, config)
    assert len(str(error.value)) < 2000


def test_one_tensor_under_two_names_is_refused(config, tensors):
    tensors["encoder.layer_norm.weight"] = tensors["wav2vec2.encoder.layer_norm.weight"]
    with pytest.raises(InputError, match="two names"):
        from_huggingface(tensors, config)


def test_parameters_of_another_configuration_are_refused(config, random_params, rng):
    params = random_params(config, rng)
    with pytest.raises(InputError, match="lm_head.*projector"):
        to_huggingface(params, dataclasses.replace(config, head="classification"))
    with pytest.raises(InputError, match=r"lm_head.bias has shape \(9,\).*\(10,\)"):
        to_huggingface(params, dataclasses.replace(config, vocab_size=10))


def test_a_retrieval_model_is_a_classifier_and_a_temperature_in_its_configuration(tiny_config, random_params, rng):
    config = tiny_config("layer", "retrieval", logit_scale=3.25)
    params = random_params(config, rng)
    flat = flatten_params(params)
    tensors = to_huggingface(params, config)
    classifier = tiny_config("layer", "classification")
    assert tensors.keys() == to_huggingface(random_params(classifier, rng), classifier).keys()
    back, report = from_huggingface(tensors, config)
    assert report == type(report)((), (), ())
    back = flatten_params(back)
    assert back.pop("logit_scale") == np.float32(3.25) and flat.pop("logit_scale") is not None
    same(back, flat)
    with pytest.raises(InputError, match="logit_scale"):
        to_huggingface({**params, "logit_scale": np.float32(1)}, classifier)


def test_a_retrieval_configuration_is_read_back(tiny_config):
    config = tiny_config("layer", "retrieval", num_labels=24, logit_scale=float(np.float32(2.7182818)))
    written = config.to_huggingface()
    assert written["architectures"] == ["Wav2Vec2ForSequenceClassification"]
    assert (written["xtremes_jax_head"], written["num_labels"]) == ("retrieval", 24) and "id2label" not in written
    assert ModelConfig.from_huggingface(json.loads(json.dumps(written))) == config
    # As a starting point for another task it is a checkpoint like any other.
    assert ModelConfig.from_huggingface(written, head="ctc").head == "ctc"
    assert "logit_scale" not in tiny_config("layer", "classification").to_huggingface()
    with pytest.raises(InputError, match="logit_scale"):
        ModelConfig.from_huggingface(written | {"logit_scale": "warm"})
