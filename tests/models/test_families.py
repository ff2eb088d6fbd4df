"""Every family of encoders against PyTorch Transformers, on fresh random weights and ragged audio.

Needs torch. Clips are compared one at a time: there PyTorch's padding plays no part, and here it never does.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.family_models import (
    LENGTHS,
    VARIANTS,
    compare_gradients,
    frames_of,
    torch_logits,
    torch_model,
    variant,
)
from models.translation_models import DECODER, parameters
from safetensors.numpy import save_file

from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    FAMILIES,
    TranslationConfig,
    abstract_model,
    build_model,
    config_from_huggingface,
    decays,
    flatten_params,
    from_encoder_and_decoder,
    from_huggingface,
    is_fixed,
    merge,
    split_params,
    to_huggingface,
    unflatten_params,
)
from xtremes_jax.models.relative import by_distance
from xtremes_jax.models.wav2vec2_conformer import biased
from xtremes_jax.models.wavlm import distance_buckets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HEADS = [("ctc", False), ("classification", False), ("classification", True)]
AUTO = {"ctc": "AutoModelForCTC", "classification": "AutoModelForAudioClassification"}


def test_every_family_has_a_variant():
    assert {model_type for model_type, *_ in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize(("head", "weighted"), HEADS, ids=["ctc", "classification", "weighted"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gradients(name, head, weighted, random_params, ragged_audio, rng):
    config = variant(name, head, use_weighted_layer_sum=weighted)
    params = random_params(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    frames = [config.num_frames(length) for length in LENGTHS]
    shape = (max(frames), config.vocab_size) if head == "ctc" else (config.num_labels,)
    weights = rng.standard_normal((len(LENGTHS), *shape)).astype(np.float32)
    if head == "ctc":
        weights[np.arange(max(frames)) >= np.array(frames)[:, None]] = 0
    graphdef, _ = split_params(abstract_model(config))
    lengths, frames_of_clips = np.array(LENGTHS, np.int32), frames_of(config, audio)

    def loss(params):
        logits = merge(graphdef, params)(audio, lengths, frames=frames_of_clips).logits
        return jnp.sum(logits * weights), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    model = torch_model(config, params)
    theirs = list(torch_logits(model, config, audio))
    for row, expected in enumerate(theirs):
        ours = logits[row][: len(expected)] if head == "ctc" else logits[row]
        np.testing.assert_allclose(ours, expected.detach(), atol=1e-4)
    sum((ours * torch.from_numpy(w[: len(ours)])).sum() for ours, w in zip(theirs, weights, strict=True)).backward()
    compare_gradients(to_huggingface(gradients, config), model)


VECTORS = (
    "bias", "scale", "weight_g", "masked_spec_embed", "layer_weights", "running_mean", "running_var",
    "gru_rel_pos_const", "pos_bias_u", "pos_bias_v",
)  # fmt: skip
"""Last parts of the names of parameters that `num_parameters` leaves out."""


@pytest.mark.parametrize("name", VARIANTS)
def test_num_parameters_are_the_elements_of_the_models_matrices(name):
    config = variant(name, "classification")
    sizes = {key: leaf.size for key, leaf in flatten_params(split_params(abstract_model(config))[1]).items()}
    assert config.num_parameters == sum(size for key, size in sizes.items() if key.rpartition(".")[2] not in VECTORS)


@pytest.mark.parametrize("name", VARIANTS)
def test_without_masking_the_exported_tensors_are_transformers(name, random_params, rng):
    config = variant(name, mask_time_prob=0.0, mask_feature_prob=0.0)
    torch_model(config, random_params(config, rng))  # strict


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_never_changes_a_clip(name, random_params, ragged_audio, rng):
    config = variant(name)
    params = random_params(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    wide = rng.integers(-3000, 3000, (len(LENGTHS), 5000)).astype(np.int16)
    for row, length in enumerate(LENGTHS):
        wide[row, :length] = audio[row, :length]
    graphdef, _ = split_params(abstract_model(config))
    run = jax.jit(lambda params, audio, lengths: merge(graphdef, params)(audio, lengths).logits)
    logits = run(params, wide, np.array(LENGTHS, np.int32))
    for row, length in enumerate(LENGTHS):
        alone = run(params, audio[row : row + 1, :length], np.array([length], np.int32))[0]
        np.testing.assert_allclose(logits[row, : len(alone)], alone, atol=2e-5)


@pytest.mark.parametrize("head", ["ctc", "classification"])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_directory_reloads_in_transformers_and_here(name, head, random_params, ragged_audio, rng, tmp_path):
    config = variant(name, head, num_labels=2)
    params = random_params(config, rng)
    written = config.to_huggingface()
    assert config_from_huggingface(json.loads(json.dumps(written))) == config
    (tmp_path / "config.json").write_text(json.dumps(written))
    tensors = to_huggingface(params, config)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = getattr(transformers, AUTO[head]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    audio = ragged_audio(rng, LENGTHS)
    graphdef, _ = split_params(abstract_model(config))
    back, report = from_huggingface(tensors, config)
    assert report.missing == report.unexpected == ()
    frames, lengths = frames_of(config, audio), np.array(LENGTHS, np.int32)
    ours = jax.jit(lambda params: merge(graphdef, params)(audio, lengths, frames=frames).logits)(back)
    for row, theirs in enumerate(torch_logits(model.eval(), config, audio)):
        np.testing.assert_allclose(ours[row][: len(theirs)], theirs.detach(), atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_saved_by_transformers_loads(name):
    config = variant(name, "classification")
    ending = "ForSequenceClassification"
    fields = config.to_huggingface()
    model = getattr(transformers, f"{config.architecture}{ending}")(transformers.AutoConfig.for_model(**fields))
    held = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    params, report = from_huggingface(held, config)
    assert report.missing == report.unexpected == ()
    back = to_huggingface(params, config)
    assert back.keys() == held.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, held[key])
    assert config_from_huggingface(json.loads(model.config.to_json_string()), head="classification") == config


@pytest.mark.parametrize("name", VARIANTS)
def test_new_parameters_are_spread_as_in_transformers(name):
    wide = dict(conv_dim=(32,) * 4, hidden_size=48, intermediate_size=96, num_attention_heads=4)
    config = variant(name, "classification", **wide)
    ours = to_huggingface(split_params(build_model(config, seed=5))[1], config)
    kind = getattr(transformers, f"{config.architecture}ForSequenceClassification")
    model = kind(transformers.AutoConfig.for_model(**config.to_huggingface()))
    for key, tensor in model.state_dict().items():
        if "pos_conv_embed.conv.parametrizations" in key:
            continue  # there, PyTorch's parametrization undoes the distribution that Transformers asks for
        if "hubert" in name and key.startswith(("hubert.feature_", "hubert.encoder.pos_conv_embed")):
            continue  # Transformers draws these as PyTorch does; ours are drawn as wav2vec 2.0's
        if key.startswith("sew.feature_extractor") and key.endswith("conv.bias"):
            continue  # 0 in Transformers
        tensor = tensor.float()
        assert abs(ours[key].mean() - float(tensor.mean())) <= 0.6 * float(tensor.abs().max()), key
        if tensor.numel() >= 300:
            np.testing.assert_allclose(ours[key].std(), tensor.std(), rtol=0.2, err_msg=key)
        elif tensor.numel() > 1:
            assert (ours[key].std() == 0) == (float(tensor.std()) == 0), key


@pytest.mark.parametrize("name", VARIANTS)
def test_decay_groups_are_the_trainers(name):
    from transformers.trainer import Trainer

    config = variant(name, "classification", use_weighted_layer_sum=True)
    kind = getattr(transformers, f"{config.architecture}ForSequenceClassification")
    model = kind(transformers.AutoConfig.for_model(**config.to_huggingface()))
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    _, shapes = split_params(abstract_model(config))
    flat = flatten_params(shapes)
    mask = {key: np.full(leaf.shape, decays(key) and not is_fixed(key), np.float32) for key, leaf in flat.items()}
    ours = {key for key, array in to_huggingface(unflatten_params(mask), config).items() if array.all()}
    unused = {key for key in theirs if "conformer" in name and "pos_conv_embed" in key}
    assert ours & dict(model.named_parameters()).keys() == theirs - unused


def test_regularisation_draws_in_every_family(random_params, ragged_audio, rng):
    from xtremes_jax.models import Randomness

    rates = dict(hidden_dropout=0.3, activation_dropout=0.3, attention_dropout=0.3, layerdrop=0.3, mask_time_prob=0.5)
    for name in ("wavlm-large", "data2vec", "conformer-relative", "conformer-rotary", "bert"):
        config = variant(name, **rates)
        params = random_params(config, rng)
        audio = ragged_audio(rng, LENGTHS)
        graphdef, _ = split_params(abstract_model(config, remat="full"))

        def loss(params, key, graphdef=graphdef, audio=audio):
            randomness = Randomness(jax.random.split(key, len(LENGTHS)), key)
            logits = merge(graphdef, params)(audio, np.array(LENGTHS, np.int32), randomness=randomness).logits
            return jnp.mean(logits**2)

        step = jax.jit(jax.value_and_grad(loss))
        values = [step(params, jax.random.key(seed)) for seed in (0, 0, 1)]
        assert values[0][0] == values[1][0] != values[2][0]
        assert all(np.isfinite(leaf).all() for _, tree in values for leaf in jax.tree.leaves(tree))


def test_buckets_of_distances_are_those_of_transformers():
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    for buckets, longest in ((320, 800), (32, 128), (12, 9)):
        attention = WavLMAttention(embed_dim=4, num_heads=1, num_buckets=buckets, max_distance=longest)
        distances = np.arange(-3000, 3001)
        theirs = attention._relative_positions_bucket(torch.from_numpy(distances))
        np.testing.assert_array_equal(distance_buckets(distances, buckets, longest), theirs)


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_distances_are_laid_out(frames, rng):
    x = rng.standard_normal((2, 3, frames, 2 * frames - 1))
    laid = by_distance(jnp.asarray(x))
    for i in range(frames):
        for j in range(frames):
            np.testing.assert_array_equal(laid[..., i, j], x[..., i, j - i + frames - 1].astype(np.float32))


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("wavlm", {"num_buckets": 3}, "num_buckets is 3"),
        ("wav2vec2-conformer", {"position_embeddings_type": "absolute"}, "position_embeddings_type is 'absolute'"),
        ("wav2vec2-conformer", {"conv_depthwise_kernel_size": 4}, "conv_depthwise_kernel_size is 4; it must be odd"),
        ("wav2vec2-conformer", {"conformer_conv_dropout": 1.0}, "conformer_conv_dropout is 1.0"),
        ("wav2vec2", {"adapter_attn_dim": 0}, "adapter_attn_dim is 0"),
        ("hubert", {"adapter_attn_dim": "16"}, "adapter_attn_dim is '16'"),
        ("wavlm", {"adapter_attn_dim": 16}, "adapter_attn_dim.*not implemented"),
        ("data2vec-audio", {"adapter_attn_dim": 16}, "adapter_attn_dim.*not implemented"),
        ("wav2vec2-conformer", {"adapter_attn_dim": 16}, "adapter_attn_dim.*not implemented"),
        ("wav2vec2-bert", {"adapter_attn_dim": 16}, "adapter_attn_dim.*not implemented"),
        ("hubert", {"conv_pos_batch_norm": "yes"}, "conv_pos_batch_norm is 'yes'"),
        ("data2vec-audio", {"conv_pos_kernel_size": 0}, "conv_pos_kernel_size is 0"),
        ("data2vec-audio", {"num_conv_pos_embeddings": 128}, "num_conv_pos_embeddings is 128; .* 64 at most"),
        ("wav2vec2-bert", {"feature_projection_input_dim": 80}, "feature_projection_input_dim is 80"),
        ("wav2vec2-bert", {"position_embeddings_type": "shaw"}, "position_embeddings_type is 'shaw'"),
        ("wav2vec2-bert", {"adapter_act": "tanh"}, "adapter_act is 'tanh'"),
        ("wav2vec2-bert", {"use_intermediate_ffn_before_adapter": True}, "Set both or neither"),
        ("wav2vec2-bert", {"add_adapter": True, "adapter_stride": 4}, "Make the halves equal"),
        ("wav2vec2-bert", {"add_adapter": True, "output_hidden_size": 100}, "does not divide output_hidden_size"),
        ("whisper", {}, r"model_type 'whisper'.*'hubert' \(HuBERT\)"),
        (["hubert"], {}, r"model_type \['hubert'\]"),
    ],
)
def test_what_cannot_be_is_refused(model_type, fields, message):
    with pytest.raises(InputError, match=message):
        config_from_huggingface({"model_type": model_type, **fields})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parts_that_a_family_lacks_cannot_be_asked_for(model_type):
    """Transformers would not know them in an exported config.json; there they mean nothing, and are passed over."""
    kind = FAMILIES[model_type].config
    values = {"add_adapter": True, "do_stable_layer_norm": not kind.do_stable_layer_norm, "adapter_attn_dim": 16}
    other_norm = {"group": "layer", "layer": "group"}[kind.feat_extract_norm]
    values |= {"feat_extract_norm": other_norm, "conv_dim": (8,), "num_adapter_layers": 2}
    for name in values.keys() & set(kind.lacking):
        with pytest.raises(InputError, match=f"{name} is .*has no such part in Transformers"):
            kind(**{name: values[name]})
        if name not in kind.unsupported:
            assert config_from_huggingface({"model_type": model_type, name: values[name]}) == kind()
    assert config_from_huggingface({"model_type": model_type}) == kind()


@pytest.mark.parametrize("name", ["conformer-rotary", "hubert-batch-norm"])
def test_what_is_stored_beside_the_parameters_is_passed_over(name, random_params, rng):
    """Counters of batches and constants: with and without the root of the names, and in an encoder to be joined."""
    config = variant(name)
    params = random_params(config, rng)
    rooted = to_huggingface(params, config)
    bare = {key.removeprefix(f"{config.root}."): value for key, value in rooted.items() if not key.startswith("lm_")}
    joint = TranslationConfig(variant(name, None), DECODER, decoder_start_token_id=3)
    drawn = to_huggingface(parameters(joint, rng), joint)
    decoder = {key.removeprefix("decoder."): drawn[key] for key in drawn if key.startswith("decoder.")}
    for encoder in (rooted, bare):
        alone, report = from_huggingface(encoder, config)
        assert not report.unexpected
        joined, report = from_encoder_and_decoder(encoder, decoder, joint)
        assert all(name.startswith("enc_to_dec_proj") for name in report.missing)
        for found in (alone, joined):
            jax.tree.map(np.testing.assert_array_equal, found["encoder"], params["encoder"])


def test_a_bias_of_queries_has_a_gradient_beyond_float16(rng):
    query = jnp.asarray(rng.standard_normal((2, 500, 2, 3)), jnp.float16)
    bias = jnp.asarray(rng.standard_normal((2, 3)), jnp.float32)
    result, pull = jax.vjp(biased, query, bias)
    np.testing.assert_array_equal(result, query + bias.astype(jnp.float16))
    of_query, of_bias = pull(jnp.full(query.shape, 100.0, jnp.float16))
    assert of_query.dtype == jnp.float16 and of_bias.dtype == jnp.float32
    np.testing.assert_array_equal(of_bias, np.full((2, 3), 1e5))  # float16 ends at 65,504
