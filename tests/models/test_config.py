"""Configurations: presets, config.json both ways, refusals, and the arithmetic of frames."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    DECODER_PRESETS,
    PRESETS,
    ModelConfig,
    TranslationConfig,
    abstract_model,
    config_from_huggingface,
    flatten_params,
    split_params,
)

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
    assert config_from_huggingface(written) == expected


def test_label_names_are_written_and_counted():
    config = dataclasses.replace(PRESETS["tiny"], head="classification", num_labels=2)
    written = config.to_huggingface(label_names=["on", "off"])
    assert written["id2label"] == {"0": "on", "1": "off"} and written["label2id"] == {"on": 0, "off": 1}
    with pytest.raises(InputError, match="3 label names .* 2 labels"):
        config.to_huggingface(label_names=["a", "b", "c"])


MALFORMED = [
    ({"hidden_size": "768"}, "hidden_size is '768'"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"hidden_size": [768]}, "hidden_size"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
    ({"intermediate_size": 0}, "intermediate_size"),
    ({"vocab_size": 10**12}, "vocab_size"),
    ({"num_labels": "two"}, "num_labels"),
    ({"num_labels": 0}, "num_labels"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_conv_pos_embeddings": 0}, "num_conv_pos_embeddings"),
    ({"num_conv_pos_embedding_groups": 0}, "num_conv_pos_embedding_groups"),
    ({"mask_time_min_masks": -1}, "mask_time_min_masks"),
    ({"pad_token_id": -1}, "pad_token_id"),
    ({"conv_dim": 5}, "conv_dim is 5"),
    ({"conv_dim": "512"}, "conv_dim"),
    ({"conv_dim": []}, "conv_dim"),
    ({"conv_stride": [0] * 7}, "conv_stride"),
    ({"conv_kernel": [-3] * 7}, "conv_kernel"),
    ({"conv_kernel": [2.0] * 7}, "conv_kernel"),
    ({name: [2] * 1000 for name in ("conv_dim", "conv_kernel", "conv_stride")}, "conv_dim"),
    ({"hidden_dropout": "abc"}, "hidden_dropout is 'abc'"),
    ({"hidden_dropout": False}, "hidden_dropout is False"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ({"layer_norm_eps": 10**400}, "layer_norm_eps"),
    ({"layer_norm_eps": 0}, "layer_norm_eps"),
    ({"initializer_range": -1}, "initializer_range"),
    ({"do_stable_layer_norm": "false"}, "do_stable_layer_norm"),
    ({"hidden_act": ["gelu"]}, "hidden_act"),
    ({"feat_extract_norm": 1}, "feat_extract_norm"),
    ({"id2label": 5}, "id2label is 5"),
    ({"id2label": ["yes", "no"]}, "id2label"),
    ({"id2label": {"yes": 0}}, "id2label"),
    ({"architectures": 5}, "architectures is 5"),
    ({"architectures": [["Wav2Vec2ForCTC"]]}, "architectures"),
]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "hubert"}, "hubert"),
        ({"model_type": None}, "None"),
        (
            MINIMAL | {"add_adapter": True, "architectures": ["Wav2Vec2ForSequenceClassification"]},
            "add_adapter true.*no sequence classification",
        ),
        (MINIMAL | {"adapter_attn_dim": 0.5}, "adapter_attn_dim is 0.5"),
        (MINIMAL | {"position_embeddings_type": "rotary"}, "position_embeddings_type"),
        (MINIMAL | {"quantization_config": {"bits": 4}}, "quantization_config"),
        (MINIMAL | {"feat_extract_norm": "batch"}, "feat_extract_norm"),
        (MINIMAL | {"hidden_act": "mish"}, "hidden_act"),
        (MINIMAL | {"conv_dim": [512, 512]}, "conv_dim"),
        (MINIMAL | {"num_attention_heads": 7}, "num_attention_heads"),
        (MINIMAL | {"hidden_dropout": 1.0}, "hidden_dropout"),
        (MINIMAL | {"mask_time_prob": 1.5}, "mask_time_prob"),
        (MINIMAL | {"mask_time_length": 0}, "mask_time_length"),
        *((MINIMAL | fields, named) for fields, named in MALFORMED),
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
    assert config.min_samples == 400


def count(config: ModelConfig) -> int:
    """Parameters of the model, without a head."""
    _, params = split_params(abstract_model(dataclasses.replace(config, head="ctc")))
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in flatten_params(params).items()}
    return sum(size for name, size in sizes.items() if name.startswith("encoder."))


def test_presets_have_as_many_parameters_as_the_published_models():
    # `facebook/wav2vec2-base` and `facebook/wav2vec2-xls-r-300m` as Transformers counts them (`Wav2Vec2Model`).
    assert count(PRESETS["base"]) == 94_371_712
    assert count(PRESETS["xls_r_300m"]) == 315_438_720
    # Table 2 of Babu et al. 2021, in millions, which counts the quantizer of pretraining too: 2 to 3 million.
    for name, millions in (("xls_r_300m", 317), ("xls_r_1b", 965), ("xls_r_2b", 2162)):
        assert 1 <= millions - count(PRESETS[name]) / 1e6 <= 4, name


VECTORS = ("bias", "scale", "weight_g", "masked_spec_embed", "layer_weights", "logit_scale")
"""Last parts of the names of parameters that `num_parameters` leaves out."""


def matrices(config: ModelConfig | TranslationConfig) -> int:
    """Elements of the model's own matrices and kernels."""
    sizes = {name: leaf.size for name, leaf in flatten_params(split_params(abstract_model(config))[1]).items()}
    assert {name.rpartition(".")[2] for name in sizes} <= {*VECTORS, "kernel", "weight_v", "embedding"}
    return sum(size for name, size in sizes.items() if name.rpartition(".")[2] not in VECTORS)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "ctc", "vocab_size": 77},
        {"head": "ctc", "vocab_size": 77, "add_adapter": True},
        {"head": "ctc", "vocab_size": 77, "add_adapter": True, "output_hidden_size": 24, "adapter_kernel_size": 4},
        {"head": "classification", "num_labels": 9},
        {"head": "classification", "num_labels": 9, "use_weighted_layer_sum": True},
        {"head": "retrieval", "num_labels": 40},
        {"head": "ctc", "feat_extract_norm": "layer", "conv_bias": True, "conv_dim": (8, 16, 24, 32, 40, 48, 56)},
        {"head": "ctc", "intermediate_size": 96, "num_conv_pos_embedding_groups": 8, "num_hidden_layers": 3},
    ],
)
def test_num_parameters_are_the_elements_of_the_models_matrices(changes):
    config = dataclasses.replace(PRESETS["tiny"], **changes)
    assert config.num_parameters == matrices(config)


@pytest.mark.parametrize("name", ["base", "xls_r_300m", "xls_r_1b", "xls_r_2b"])
@pytest.mark.parametrize("head", ["ctc", "classification", "retrieval"])
def test_num_parameters_of_published_models(name, head):
    config = dataclasses.replace(PRESETS[name], head=head)
    assert config.num_parameters == matrices(config)


@pytest.mark.parametrize(("encoder", "decoder"), [("tiny", "tiny"), ("small", "tiny"), ("xls_r_300m", "mbart_large")])
@pytest.mark.parametrize("adapted", [False, True])
def test_num_parameters_of_both_halves_of_a_translator(encoder, decoder, adapted):
    speech = dataclasses.replace(PRESETS[encoder], add_adapter=adapted)
    config = TranslationConfig(speech, DECODER_PRESETS[decoder], decoder_start_token_id=2)
    between = speech.output_width * config.decoder.d_model * config.has_projection
    assert speech.num_parameters + between + config.decoder.num_parameters == matrices(config)
