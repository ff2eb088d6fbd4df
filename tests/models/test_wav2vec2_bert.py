"""w2v-BERT 2.0 where it differs from other families: its adapter, alone and before a decoder, beside PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.family_models import LENGTHS, compare_gradients, frames_of, torch_inputs, torch_model, variant
from models.translation_models import DECODER
from models.translation_models import torch_model as torch_translator

from xtremes_jax.models import (
    PRESETS,
    Randomness,
    TranslationConfig,
    abstract_model,
    config_from_huggingface,
    flatten_params,
    from_huggingface,
    merge,
    split_params,
    to_huggingface,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ADAPTERS = {
    "one": {},
    "two, narrower": {"num_adapter_layers": 2, "output_hidden_size": 8, "adapter_act": "gelu"},
    "with half a block before": {"use_intermediate_ffn_before_adapter": True, "output_hidden_size": 16},
    "of stride 3": {"adapter_stride": 3, "adapter_act": "swish"},
    "of even kernels": {"adapter_kernel_size": 2, "adapter_stride": 2, "layer_norm_eps": 1e-3},
}


def adapted(name):
    return variant("bert", "ctc", add_adapter=True, num_labels=2, **ADAPTERS[name])


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_gives_what_pytorchs_gives(name, random_params, ragged_audio, rng):
    config = adapted(name)
    params = random_params(config, rng)
    audio, lengths = ragged_audio(rng, LENGTHS), np.array(LENGTHS, np.int32)
    frames = frames_of(config, audio)
    graphdef, _ = split_params(abstract_model(config))
    weights = rng.standard_normal((len(LENGTHS), int(config.num_output_frames(max(LENGTHS))), config.vocab_size))
    counts = np.asarray(config.num_output_frames(lengths))
    weights[np.arange(weights.shape[1]) >= counts[:, None]] = 0

    def loss(params):
        output = merge(graphdef, params)(audio, lengths, frames=frames)
        return jnp.sum(output.logits * weights), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(params)
    model = torch_model(config, params)
    total = 0
    for row, inputs in enumerate(torch_inputs(config, audio)):
        expected = model(inputs, attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long)).logits[0]
        counted = model._get_feat_extract_output_lengths(torch.tensor(inputs.shape[1]))
        assert len(expected) == counted == counts[row] == output.logit_lengths[row]
        np.testing.assert_allclose(output.logits[row, : len(expected)], expected.detach(), atol=1e-4)
        total = total + (expected * torch.from_numpy(weights[row, : len(expected)]).float()).sum()
    total.backward()
    compare_gradients(to_huggingface(gradients, config), model)
    back, report = from_huggingface({key: value.numpy() for key, value in model.state_dict().items()}, config)
    assert report.missing == report.unexpected == ()
    assert config_from_huggingface(config.to_huggingface()) == config
    sizes = {key: leaf.size for key, leaf in flatten_params(back).items()}
    vectors = ("bias", "scale", "masked_spec_embed")
    assert config.num_parameters == sum(size for key, size in sizes.items() if key.rpartition(".")[2] not in vectors)


@pytest.mark.parametrize("name", ["one", "two, narrower"])
def test_an_adapters_dropout_draws(name, random_params, ragged_audio, rng):
    config = dataclasses.replace(
        adapted(name), conformer_conv_dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0, layerdrop=0.0,
        activation_dropout=0.5, final_dropout=0.0, mask_time_prob=0.0, num_hidden_layers=1,
    )  # fmt: skip
    params = random_params(config, rng)
    audio, lengths = ragged_audio(rng, LENGTHS), np.array(LENGTHS, np.int32)
    graphdef, _ = split_params(abstract_model(config))

    def logits(key):
        randomness = Randomness(jax.random.split(key, len(LENGTHS)), key)
        return merge(graphdef, params)(audio, lengths, randomness=randomness).logits

    first, again, other = (jax.jit(logits)(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("fields", [{}, {"add_adapter": True}, {"add_adapter": True, "output_hidden_size": 16}])
def test_a_decoder_reads_it(fields, random_params, ragged_audio, rng):
    encoder = variant("bert", None, num_labels=2, **fields)
    config = TranslationConfig(encoder, DECODER, decoder_start_token_id=3)
    params = random_params(config, rng)
    audio, lengths = ragged_audio(rng, LENGTHS), np.array(LENGTHS, np.int32)
    labels = rng.integers(4, config.vocab_size, (len(LENGTHS), 5)).astype(np.int32)
    graphdef, _ = split_params(abstract_model(config))
    frames = frames_of(encoder, audio)
    logits = jax.jit(lambda params: merge(graphdef, params)(audio, lengths, labels, frames=frames).logits)(params)
    model = torch_translator(config, params)
    for row, inputs in enumerate(torch_inputs(encoder, audio)):
        mask = torch.ones(inputs.shape[:2], dtype=torch.long)
        expected = model(
            input_features=inputs, attention_mask=mask, labels=torch.from_numpy(labels[row : row + 1]).long()
        )
        np.testing.assert_allclose(logits[row], expected.logits[0].detach(), atol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), [("bert", jnp.bfloat16), ("bert-relative", jnp.float16)])
def test_half_precision_is_near(name, dtype, random_params, ragged_audio, rng):
    config = variant(name, add_adapter=True, adapter_act="gelu")
    params = random_params(config, rng)
    audio, lengths = ragged_audio(rng, LENGTHS), np.array(LENGTHS, np.int32)

    def run(dtype):
        graphdef, _ = split_params(abstract_model(config, dtype=dtype))

        def loss(params):
            output = merge(graphdef, params)(audio, lengths)
            valid = jnp.arange(output.logits.shape[1]) < output.logit_lengths[:, None]
            return jnp.mean(jnp.where(valid[:, :, None], output.logits, 0.0) ** 2), output.logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    gradients, logits = run(dtype)
    exact_gradients, exact = run(jnp.float32)
    np.testing.assert_allclose(logits[0], exact[0], atol=0.1)
    for key, gradient in flatten_params(gradients).items():
        expected = flatten_params(exact_gradients)[key]
        assert gradient.dtype == jnp.float32, key
        assert np.abs(gradient - expected).max() <= 0.1 * np.abs(expected).max() + 0.01, key


def test_the_preset_is_the_published_shape():
    config = PRESETS["w2v_bert_2"]
    assert config == config_from_huggingface(transformers.Wav2Vec2BertConfig().to_dict())
    shapes = flatten_params(split_params(abstract_model(dataclasses.replace(config, head="ctc")))[1])
    total = sum(leaf.size for name, leaf in shapes.items() if "lm_head" not in name)
    with torch.device("meta"):
        model = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig())
    assert total == sum(value.numel() for value in model.parameters())
