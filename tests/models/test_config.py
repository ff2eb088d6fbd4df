"""Configurations: presets, config.json both ways, refusals, and the arithmetic of frames."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.models import PRESETS, ModelConfig

MINIMAL = {"model_type": "wav2vec2"}


def test_a_config_json_without_fields_is_the_base_model():
    assert ModelConfig.from_huggingface(MINIMAL) == PRESETS["base"]


def test_from_huggingface_reads_what_is_there():
    config = ModelConfig.from_huggingface(
        MINIMAL
        | {
            "architectures": ["Wav2Vec2ForSequenceClassification"],
            "conv_dim": [4, 5],
            "conv_kernel": [10, 3],
            "conv_stride": [5, 2],
            "hidden_dropout": 0,
            "id2label": {"0": "yes", "1": "no", "2": "perhaps"},
            "num_codevectors_per_group": 320,
        },
        normalize_waveform=False,
    )
    assert config.head == "classification" and config.num_labels == 3
    assert config.conv_dim == (4, 5) and not config.normalize_waveform
    assert isinstance(config.hidden_dropout, float)
    assert isinstance(hash(config), int)


@pytest.mark.parametrize(
    ("architectures", "head"),
    [(["Wav2Vec2ForCTC"], "ctc"), (["Wav2Vec2ForPreTraining"], None), (None, None)],
)
def test_the_head_comes_from_the_architecture_unless_given(architectures, head):
    fields = MINIMAL | {"architectures": architectures}
    assert ModelConfig.from_huggingface(fields).head == head
    assert ModelConfig.from_huggingface(fields, head="classification").head == "classification"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("head", ["ctc", "classification"])
def test_presets_survive_json_both_ways(name, head):
    config = dataclasses.replace(PRESETS[name], head=head, num_labels=4, vocab_size=17)
    written = json.loads(json.dumps(config.to_huggingface()))
    expected = config if head == "classification" else dataclasses.replace(config, num_labels=2)
    assert ModelConfig.from_huggingface(written) == expected


def test_label_names_are_written_and_counted():
    config = dataclasses.replace(PRESETS["tiny"], head="classification", num_labels=2)
    written = config.to_huggingface(label_names=["on", "off"])
    assert written["id2label"] == {"0": "on", "1": "off"} and written["label2id"] == {"on": 0, "off": 1}
    with pytest.raises(InputError, match="3 label names .* 2 labels"):
        config.to_huggingface(label_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "hubert"}, "hubert"),
        ({"model_type": None}, "None"),
        (MINIMAL | {"add_adapter": True}, "add_adapter.*later"),
        (MINIMAL | {"adapter_attn_dim": 16}, "adapter_attn_dim"),
        (MINIMAL | {"position_embeddings_type": "rotary"}, "position_embeddings_type"),
        (MINIMAL | {"quantization_config": {"bits": 4}}, "quantization_config"),
        (MINIMAL | {"feat_extract_norm": "batch"}, "feat_extract_norm"),
        (MINIMAL | {"hidden_act": "mish"}, "hidden_act"),
        (MINIMAL | {"conv_dim": [512, 512]}, "conv_dim"),
        (MINIMAL | {"num_attention_heads": 7}, "num_attention_heads"),
        (MINIMAL | {"hidden_dropout": 1.0}, "hidden_dropout"),
        (MINIMAL | {"mask_time_prob": 1.5}, "mask_time_prob"),
        (MINIMAL | {"mask_time_length": 0}, "mask_time_length"),
    ],
)
def test_what_is_not_supported_is_named(fields, named):
    with pytest.raises(InputError, match=named):
        ModelConfig.from_huggingface(fields)


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_num_frames_is_that_of_the_convolutions(name):
    config = PRESETS[name]
    lengths = np.concatenate([np.arange(0, 1300), [16_000, 480_000]])
    expected = []
    for length in lengths:
        steps = np.arange(length)  # the sample that each step starts at: convolve by indexing
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            steps = steps[: max(len(steps) - kernel + 1, 0) : stride]
        expected.append(len(steps))
    np.testing.assert_array_equal(config.num_frames(lengths), expected)
    np.testing.assert_array_equal(jax.jit(config.num_frames)(jnp.asarray(lengths, jnp.int32)), expected)
    assert [config.num_frames(int(length)) for length in lengths] == expected
    assert config.min_samples == 400 and config.samples_per_frame == 320


def test_the_published_sizes(tiny_config):
    assert (PRESETS["xls_r_300m"].hidden_size, PRESETS["xls_r_300m"].num_hidden_layers) == (1024, 24)
    assert (PRESETS["xls_r_1b"].hidden_size, PRESETS["xls_r_1b"].num_hidden_layers) == (1280, 48)
    assert (PRESETS["xls_r_2b"].hidden_size, PRESETS["xls_r_2b"].intermediate_size) == (1920, 7680)
