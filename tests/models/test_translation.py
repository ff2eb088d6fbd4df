"""The translation model without PyTorch: padding, randomness, precision, configurations, parameters of two parts."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from models.translation_models import ADAPTER, config_of, many_clips, parameters

from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    DECODER_PRESETS,
    PRESETS,
    DecoderConfig,
    ModelConfig,
    Randomness,
    TranslationConfig,
    abstract_model,
    flatten_params,
    from_encoder_and_decoder,
    from_huggingface,
    is_feature_encoder,
    merge,
    split_params,
    to_huggingface,
)
from xtremes_jax.models.adapter import Adapter
from xtremes_jax.models.translation import shift_right


def keys(seed, batch):
    """Randomness of a training step."""
    return Randomness(jax.random.split(jax.random.key(seed), batch), jax.random.key(seed + 1))


@pytest.mark.parametrize("case", ["plain", "widening adapter", "post-norm"])
def test_padding_never_changes_a_clip(case, rng):
    config = config_of(case)
    params = parameters(config, rng)
    audio, lengths = many_clips(rng, 4)
    graphdef, _ = split_params(abstract_model(config))
    encode = jax.jit(lambda params, audio, lengths: merge(graphdef, params).encode(audio, lengths))
    hidden, frames = encode(params, np.pad(audio, ((0, 0), (0, 777))), lengths)
    for row, length in enumerate(lengths):
        alone, count = encode(params, audio[row : row + 1, :length], None)
        assert frames[row] == count[0] == alone.shape[1] == config.encoder.num_output_frames(int(length))
        np.testing.assert_allclose(hidden[row, : frames[row]], alone[0], atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_adapters_of_any_kernel_keep_padding_out(kernel, stride, rng):
    fields = ADAPTER | {"adapter_kernel_size": kernel, "adapter_stride": stride}
    encoder = dataclasses.replace(config_of("plain").encoder, **fields)
    adapter = Adapter(encoder, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(adapter)
    run = jax.jit(lambda x, lengths: nnx.merge(graphdef, params)(x, lengths))
    x = rng.standard_normal((3, 21, 12)).astype(np.float32)
    lengths = np.array([21, 14, 9], np.int32)
    found = run(x, lengths)
    for row, length in enumerate(lengths):
        alone = run(x[row : row + 1, :length], None)[0]
        np.testing.assert_allclose(found[row, : len(alone)], alone, atol=1e-5)
        steps = encoder.adapter_steps(encoder.adapter_steps(int(length)))
        assert len(alone) == steps


def test_frames_of_an_adapter_are_counted_as_in_transformers():
    config = dataclasses.replace(PRESETS["xls_r_300m"], add_adapter=True)
    lengths = np.arange(0, 40_000, 97)
    expected = config.num_frames(lengths)
    for _ in range(3):
        expected = np.where(expected > 0, (expected - 1) // 2 + 1, 0)
    np.testing.assert_array_equal(config.num_output_frames(lengths), expected)
    np.testing.assert_array_equal(jax.jit(config.num_output_frames)(jnp.asarray(lengths, jnp.int32)), expected)
    assert config.num_output_frames(16_000) == 7 and PRESETS["xls_r_300m"].num_output_frames(16_000) == 49


def test_too_few_frames_for_an_adapter_are_refused():
    encoder = dataclasses.replace(config_of("plain").encoder, **ADAPTER, adapter_kernel_size=5)
    adapter = Adapter(encoder, dtype=jnp.float32, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="adapter gets 2 frames.*5 wide"):
        adapter(jnp.zeros((1, 2, 12)), None)


def test_labels_are_shifted():
    labels = jnp.array([[5, 6, 2, 0], [7, 2, 0, 0], [0, 0, 0, 0]], jnp.int32)
    shifted = shift_right(labels, jnp.array([3, 2, 0], jnp.int32), start=9, pad=1)
    np.testing.assert_array_equal(shifted, [[9, 5, 6, 2], [9, 7, 2, 1], [9, 1, 1, 1]])
    np.testing.assert_array_equal(shift_right(labels, None, start=9, pad=1)[0], [9, 5, 6, 2])


def test_later_labels_and_padding_labels_do_not_matter(rng):
    config = config_of("plain")
    params = jax.tree.map(jnp.asarray, parameters(config, rng))
    audio, lengths = many_clips(rng, 2)
    graphdef, _ = split_params(abstract_model(config))
    labels = rng.integers(4, 31, (2, 6)).astype(np.int32)
    counts = np.array([6, 4], np.int32)
    run = jax.jit(lambda labels: merge(graphdef, params)(audio, lengths, labels, counts).logits)
    changed = labels.copy()
    changed[0, 5] += 1  # the last label of a row is predicted, never read
    changed[1, 4:] = 17
    before, after = run(labels), run(changed)
    np.testing.assert_array_equal(before, after)
    changed[0, 2] = 4 if changed[0, 2] != 4 else 5
    np.testing.assert_array_equal(before[0, :3], run(changed)[0, :3])
    assert np.abs(before[0, 3:] - run(changed)[0, 3:]).max() > 1e-3


def training_loss(config, dtype, remat, batch):
    """A jitted function of parameters and randomness to the loss and its gradient."""
    audio, lengths, labels, counts = batch
    graphdef, _ = split_params(abstract_model(config, dtype=dtype, remat=remat))
    valid = np.arange(labels.shape[1]) < counts[:, None]

    def loss(params, randomness):
        logits = merge(graphdef, params)(audio, lengths, labels, counts, randomness=randomness).logits
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, :, None], axis=2)[:, :, 0]
        return -jnp.sum(picked * valid) / valid.sum()

    return jax.jit(jax.value_and_grad(loss))


@pytest.fixture
def batch(rng):
    audio, lengths = many_clips(rng, 3)
    lengths = lengths * np.array([1, 1, 0], np.int32)  # the last row is a filler
    audio = audio * (lengths > 0)[:, None].astype(np.int16)
    return audio, lengths, rng.integers(4, 31, (3, 5)).astype(np.int32), np.array([5, 3, 0], np.int32)


def test_rematerialisation_changes_nothing_and_all_rates_draw(batch, rng):
    rates = {"dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2, "decoder_layerdrop": 0.3}
    config = config_of("widening adapter", **rates)
    params = parameters(config, rng)
    plain = training_loss(config, jnp.float32, "none", batch)
    loss, gradients = plain(params, keys(0, 3))
    for name, gradient in flatten_params(gradients).items():
        assert np.isfinite(gradient).all(), name
    again, same = training_loss(config, jnp.float32, "dots", batch)(params, keys(0, 3))
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    for name, gradient in flatten_params(same).items():
        np.testing.assert_allclose(gradient, flatten_params(gradients)[name], atol=1e-4, err_msg=name)
    others = {float(plain(params, keys(seed, 3))[0]) for seed in (0, 2, 4)} | {float(plain(params, None)[0])}
    assert len(others) == 4


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout", "decoder_layerdrop"])
def test_each_rate_alone_changes_the_logits(rate, rng):
    none = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "decoder_layerdrop"), 0.0)
    config = config_of("plain", **none | {rate: 0.5})
    params = jax.tree.map(jnp.asarray, parameters(config, rng))
    graphdef, _ = split_params(abstract_model(config))
    hidden = jnp.asarray(rng.standard_normal((2, 7, 16)).astype(np.float32))
    tokens, frames = jnp.asarray(rng.integers(0, 31, (2, 5)).astype(np.int32)), jnp.array([7, 4], jnp.int32)
    decode = jax.jit(lambda randomness: merge(graphdef, params).decode(tokens, hidden, frames, randomness))
    quiet, noisy = decode(None), [decode(keys(seed, 2)) for seed in (0, 2, 4, 6)]
    assert np.isfinite(noisy).all() and max(np.abs(logits - quiet).max() for logits in noisy) > 1e-2
    np.testing.assert_array_equal(noisy[0], decode(keys(0, 2)))


def test_bfloat16_runs_and_keeps_float32_where_it_matters(batch, rng):
    config = config_of("projected adapter")
    params = parameters(config, rng)
    loss, gradients = training_loss(config, jnp.bfloat16, "dots", batch)(params, keys(0, 3))
    exact, _ = training_loss(config, jnp.float32, "dots", batch)(params, keys(0, 3))
    np.testing.assert_allclose(loss, exact, rtol=0.05)
    for name, gradient in flatten_params(gradients).items():
        assert gradient.dtype == jnp.float32 and np.isfinite(gradient).all(), name


def test_a_translation_longer_than_the_positions_is_refused(rng):
    config = config_of("plain")
    with pytest.raises(InputError, match="41 tokens.*40 positions"):
        abstract_model(config).decoder.check_length(41)


def test_configurations_survive_json_both_ways():
    for case in ("plain", "projected adapter", "widening adapter"):
        config = config_of(case)
        written = json.loads(json.dumps(config.to_huggingface()))
        assert TranslationConfig.from_huggingface(written) == config
    for name, decoder in DECODER_PRESETS.items():
        assert DecoderConfig.from_huggingface(json.loads(json.dumps(decoder.to_huggingface()))) == decoder, name
    assert isinstance(hash(config), int)


def test_tokens_come_from_the_model_then_from_its_decoder():
    written = config_of("plain").to_huggingface()
    written["decoder"] |= {"decoder_start_token_id": 5, "eos_token_id": [6]}
    written |= {"eos_token_id": None}
    config = TranslationConfig.from_huggingface(written)
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (3, 6, 1)
    del written["decoder_start_token_id"]
    assert TranslationConfig.from_huggingface(written).decoder_start_token_id == 5


def nested(encoder=(), decoder=(), **top):
    """A joint config.json with changes."""
    written = config_of("plain").to_huggingface() | top
    written["encoder"] = written["encoder"] | dict(encoder)
    written["decoder"] = written["decoder"] | dict(decoder)
    return written


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (nested(model_type="wav2vec2"), "wav2vec2.*speech-encoder-decoder"),
        (nested(decoder_start_token_id=None), "no start token"),
        (nested(decoder_start_token_id=31), "decoder_start_token_id is 31.*31 tokens"),
        (nested(decoder_start_token_id="</s>"), "decoder_start_token_id is '</s>'"),
        (nested(pad_token_id=-1), "pad_token_id is -1"),
        (nested(eos_token_id=[2, 3]), "eos_token_id.*single"),
        (nested(eos_token_id=None, decoder={"eos_token_id": None}), "eos_token_id"),
        (nested() | {"decoder": None}, "decoder is None"),
        (nested(decoder={"model_type": "bert"}), "'bert'.*'mbart'"),
        (nested(decoder={"tie_word_embeddings": False}), "tie_word_embeddings"),
        (nested(decoder={"cross_attention_hidden_size": 12}), "cross_attention_hidden_size"),
        (nested(decoder={"d_model": 18}), "decoder_attention_heads"),
        (nested(decoder={"dropout": 1.0}), "dropout is 1.0"),
        (nested(decoder={"vocab_size": "31"}), "vocab_size"),
        (nested(decoder={"activation_function": "mish"}), "mish"),
        (nested(decoder={"pad_token_id": 99}), "pad_token_id is 99"),
        (nested(encoder={"model_type": "whisper"}), "whisper"),
        (nested(encoder={"add_adapter": True, "output_hidden_size": 14}), "14 features.*takes 16.*12"),
        (nested(encoder={"adapter_attn_dim": -8}), "adapter_attn_dim"),
    ],
)
def test_what_does_not_fit_is_named(fields, named):
    with pytest.raises(InputError, match=named):
        TranslationConfig.from_huggingface(fields)


def test_the_feature_encoder_is_the_encoders():
    _, params = split_params(abstract_model(config_of("widening adapter")))
    chosen = {name for name in flatten_params(params) if is_feature_encoder(name)}
    assert chosen and all(name.startswith("encoder.feature_extractor.conv_layers") for name in chosen)


def test_the_large_decoder_is_as_large_as_the_published_one():
    encoder = ModelConfig()
    _, params = split_params(abstract_model(TranslationConfig(encoder, DECODER_PRESETS["mbart_large"], 2)))
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in flatten_params(params).items()}
    width, inner = 1024, 4096
    attention, norm = 4 * (width * width + width), 2 * width
    layer = 2 * attention + 2 * width * inner + inner + width + 3 * norm
    expected = 250_027 * width + 1026 * width + 12 * layer + 2 * norm
    assert sum(size for name, size in sizes.items() if name.startswith("decoder.")) == expected


@pytest.fixture
def parts(rng):
    """A joint model's configuration and parameters, and the same as two checkpoints."""
    config = config_of("plain")
    params = parameters(config, rng)
    tensors = to_huggingface(params, config)
    encoder = {
        name.replace("encoder.", "wav2vec2.", 1): array for name, array in tensors.items() if name[:8] == "encoder."
    }
    decoder = {name.removeprefix("decoder."): array for name, array in tensors.items() if name[:8] == "decoder."}
    return config, params, encoder, decoder


def same(one, other, but=()):
    """Checks that two sets of parameters are equal but for some prefixes."""
    one, other = flatten_params(one), flatten_params(other)
    assert one.keys() == other.keys()
    for name in one:
        if not name.startswith(tuple(but)):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_model_of_two_checkpoints(parts):
    config, params, encoder, decoder = parts
    encoder |= {
        "lm_head.weight": np.zeros((3, 12)),
        "quantizer.codevectors": np.zeros(3),
        "project_q.bias": np.zeros(3),
    }
    found, report = from_encoder_and_decoder(encoder, decoder, config, seed=3)
    same(found, params, ["enc_to_dec_proj"])
    assert report.missing == ("enc_to_dec_proj.bias", "enc_to_dec_proj.weight")
    assert set(report.unexpected) == {"lm_head.weight", "quantizer.codevectors", "project_q.bias"}
    assert found["enc_to_dec_proj"]["kernel"].std() > 0 and not found["enc_to_dec_proj"]["bias"].any()


@pytest.mark.parametrize("spelling", ["conditional generation", "bare", "causal"])
def test_spellings_of_decoders(spelling, parts):
    config, params, encoder, decoder = parts
    embedding = decoder.pop("model.decoder.embed_tokens.weight")
    if spelling == "conditional generation":
        decoder |= {
            "model.shared.weight": embedding,
            "lm_head.weight": embedding.copy(),
            "final_logits_bias": embedding,
        }
        decoder |= {"model.encoder.layers.0.fc1.weight": embedding, "model.encoder.embed_tokens.weight": embedding}
    elif spelling == "bare":
        decoder = {name.removeprefix("model."): array for name, array in decoder.items()}
        decoder |= {"shared.weight": embedding, "encoder.layers.0.fc1.weight": embedding}
    else:
        decoder["lm_head.weight"] = embedding.astype(ml_dtypes.bfloat16).astype(np.float32)
        decoder["model.decoder.embed_tokens.weight"] = decoder["lm_head.weight"]
    found, report = from_encoder_and_decoder(encoder, decoder, config)
    same(found, params, ["enc_to_dec_proj"] + ["decoder.embed_tokens"] * (spelling == "causal"))
    left = {
        "conditional generation": {"final_logits_bias", "model.encoder.layers.0.fc1.weight"},
        "bare": {"encoder.layers.0.fc1.weight"},
        "causal": set(),
    }
    assert set(report.unexpected) == left[spelling]


def test_cross_attention_and_adapter_may_be_new(parts):
    config, params, encoder, decoder = parts
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **ADAPTER))
    decoder = {name: array for name, array in decoder.items() if "encoder_attn" not in name}
    del encoder["wav2vec2.masked_spec_embed"]
    found, report = from_encoder_and_decoder(encoder, decoder, config, seed=3)
    kinds = {"encoder.adapter.layers", "encoder.masked_spec_embed", "enc_to_dec_proj", "encoder_attn"}
    assert all(any(kind in name for kind in kinds) for name in report.missing)
    assert all(any(kind in name for name in report.missing) for kind in kinds)
    drawn = flatten_params(found)["decoder.layers.encoder_attn.q_proj.kernel"]
    assert drawn.shape == (2, 16, 16) and 0.01 < drawn.std() < 0.03
    np.testing.assert_array_equal(
        found["decoder"]["layers"]["fc1"]["kernel"], params["decoder"]["layers"]["fc1"]["kernel"]
    )


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda e, d: d.pop("model.decoder.layers.1.fc1.bias"), "lacks decoder.model.decoder.layers.1.fc1.bias"),
        (lambda e, d: d.pop("model.decoder.layers.1.encoder_attn.q_proj.bias"), "lacks .*encoder_attn.q_proj.bias"),
        (lambda e, d: d.pop("model.decoder.embed_tokens.weight"), "lacks .*embed_tokens"),
        (lambda e, d: e.pop("wav2vec2.encoder.layer_norm.bias"), "lacks encoder.encoder.layer_norm.bias"),
        (lambda e, d: e.update({"wav2vec2.adapter.proj.bias": np.zeros(3)}), None),
        (lambda e, d: e.update({"wav2vec2.oddity": np.zeros(3)}), "no place for: encoder.oddity"),
        (lambda e, d: e.update({"oddity": np.zeros(3)}), "no place for: oddity"),
        (lambda e, d: d.update({"oddity": np.zeros(3)}), "no place for: oddity"),
        (lambda e, d: d.update({"model.decoder.layers.2.fc1.bias": np.zeros(3)}), "no place for: .*layers.2.fc1"),
        (
            lambda e, d: d.update({"lm_head.weight": np.zeros((31, 16))}),
            "embed_tokens.* and lm_head.weight differ",
        ),
        (lambda e, d: d.update({"model.decoder.embed_tokens.weight": np.zeros((30, 16))}), r"\(30, 16\).*\(31, 16\)"),
    ],
)
def test_two_checkpoints_that_do_not_fit(spoil, named, parts):
    config, _, encoder, decoder = parts
    spoil(encoder, decoder)
    if named is None:  # an adapter that the model was configured without is left out
        assert from_encoder_and_decoder(encoder, decoder, config)[1].unexpected == ("encoder.adapter.proj.bias",)
        return
    with pytest.raises(InputError, match=named):
        from_encoder_and_decoder(encoder, decoder, config)


def test_joint_checkpoints_in_old_spelling_or_damaged(rng):
    config = config_of("widening adapter")
    params = parameters(config, rng)
    tensors = to_huggingface(params, config)
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): array
        for name, array in tensors.items()
    }
    assert "encoder.encoder.pos_conv_embed.conv.weight_g" in old
    # Only the output's name of the tied tensor, as some files have it.
    old["decoder.lm_head.weight"] = old.pop("decoder.model.decoder.embed_tokens.weight")
    found, report = from_huggingface(old, config)
    same(found, params)
    assert report.missing == report.unexpected == ()
    with pytest.raises(InputError, match="differ in the checkpoint"):
        from_huggingface(tensors | {"decoder.lm_head.weight": np.ones((31, 16))}, config)
    with pytest.raises(InputError, match="no place for: lm_head.weight"):
        from_huggingface(tensors | {"lm_head.weight": np.ones((31, 16))}, config)
    del tensors["encoder.adapter.proj.bias"]
    with pytest.raises(InputError, match="lacks encoder.adapter.proj.bias"):
        from_huggingface(tensors, config)
