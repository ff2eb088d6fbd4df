"""Speech translation beside PyTorch Transformers, live: logits, loss, gradients, checkpoints both ways.

Needs torch; where it is absent, test_translation.py compares with tensors that it made.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.translation_models import CASES, config_of, parameters, torch_inputs, torch_model

from xtremes_jax.models import (
    TranslationConfig,
    abstract_model,
    build_model,
    decays,
    flatten_params,
    from_huggingface,
    merge,
    split_params,
    to_huggingface,
    unflatten_params,
)
from xtremes_jax.models.weights import read_tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (9600, 6433, 3321, 7040)
LABEL_LENGTHS = (7, 3, 6, 1)


def labels_of(rng, config):
    """Random labels without padding tokens, and the same with -100 past the lengths."""
    labels = rng.integers(4, config.vocab_size, (len(LENGTHS), max(LABEL_LENGTHS))).astype(np.int32)
    valid = np.arange(max(LABEL_LENGTHS)) < np.array(LABEL_LENGTHS)[:, None]
    return np.where(valid, labels, 0).astype(np.int32), np.where(valid, labels, -100), valid


def loss_and_logits(graphdef, params, audio, labels, valid):
    """Mean cross entropy of the valid labels, as Transformers computes it, and the logits."""
    output = merge(graphdef, params)(audio, np.array(LENGTHS, np.int32), labels, np.array(LABEL_LENGTHS, np.int32))
    picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), labels[:, :, None], axis=2)[:, :, 0]
    return -jnp.sum(picked * valid) / valid.sum(), output.logits


def clip_by_clip(model, audio, theirs, valid):
    """PyTorch's logits of each clip alone, and the mean loss of all labels."""
    logits, loss = [], 0.0
    for row in range(len(LENGTHS)):
        inputs = torch_inputs(audio, LENGTHS, [row])
        labels = torch.from_numpy(theirs[row : row + 1]).long()
        output = model(inputs.input_values, attention_mask=inputs.attention_mask, labels=labels)
        logits.append(output.logits[0])
        loss = loss + output.loss * valid[row].sum()
    return logits, loss / valid.sum()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_loss(case, ragged_audio, rng):
    config = config_of(case)
    params = parameters(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    labels, theirs, valid = labels_of(rng, config)
    graphdef, _ = split_params(abstract_model(config))
    loss, logits = jax.jit(lambda params: loss_and_logits(graphdef, params, audio, labels, valid))(params)
    model = torch_model(config, params)
    expected, expected_loss = clip_by_clip(model, audio, theirs, valid)
    assert logits.dtype == jnp.float32 and logits.std() > 0.3
    for row, count in enumerate(LABEL_LENGTHS):
        np.testing.assert_allclose(logits[row, :count], expected[row][:count].detach(), atol=1e-4)
    np.testing.assert_allclose(loss, expected_loss.detach(), atol=1e-4)
    if case == "plain":  # PyTorch's adapter and group norm let padding into a clip, the rest does not
        inputs = torch_inputs(audio, LENGTHS)
        output = model(
            inputs.input_values, attention_mask=inputs.attention_mask, labels=torch.from_numpy(theirs).long()
        )
        np.testing.assert_allclose(np.asarray(logits)[valid], output.logits.detach().numpy()[valid], atol=1e-4)
        np.testing.assert_allclose(loss, output.loss.detach(), atol=1e-4)


def test_gradients_of_all_parameters(ragged_audio, rng):
    config = config_of("projected adapter")
    params = parameters(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    labels, theirs, valid = labels_of(rng, config)
    graphdef, _ = split_params(abstract_model(config))
    gradients = jax.jit(jax.grad(lambda params: loss_and_logits(graphdef, params, audio, labels, valid)[0]))(params)
    ours = to_huggingface(gradients, config)
    model = torch_model(config, params)
    clip_by_clip(model, audio, theirs, valid)[1].backward()
    expected = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    unused = {"encoder.masked_spec_embed"}  # evaluation: nothing is masked
    assert ours.keys() == expected.keys() | unused
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        # The second term is for gradients that are 0 but for rounding (the biases of keys).
        bound = 1e-3 * np.abs(gradient).max() + 1e-6 * largest
        assert np.abs(ours[name] - gradient).max() <= bound, name
        assert np.isfinite(ours[name]).all() and ours[name].any(), name


@pytest.mark.parametrize("case", ["plain", "widening adapter", "equal widths"])
def test_an_exported_directory_reloads_in_transformers(case, ragged_audio, rng, tmp_path):
    from safetensors.numpy import save_file

    config = config_of(case)
    params = parameters(config, rng)
    (tmp_path / "config.json").write_text(json.dumps(config.to_huggingface()))
    save_file(to_huggingface(params, config), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = transformers.SpeechEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    audio = ragged_audio(rng, LENGTHS)
    labels, theirs, valid = labels_of(rng, config)
    graphdef, _ = split_params(abstract_model(config))
    _, logits = jax.jit(lambda params: loss_and_logits(graphdef, params, audio, labels, valid))(params)
    expected, _ = clip_by_clip(model.eval(), audio, theirs, valid)
    for row, count in enumerate(LABEL_LENGTHS):
        np.testing.assert_allclose(logits[row, :count], expected[row][:count].detach(), atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "widening adapter"])
def test_a_model_saved_by_transformers_loads(case, rng, tmp_path):
    config = config_of(case)
    model = torch_model(config, parameters(config, rng))
    model.save_pretrained(tmp_path)
    assert TranslationConfig.from_huggingface(json.loads((tmp_path / "config.json").read_text())) == config
    params, report = from_huggingface(read_tensors(tmp_path), config)
    assert report.missing == report.unexpected == report.new_head == ()
    state = model.state_dict()  # it holds the tied output under both names
    from_state, report = from_huggingface({name: tensor.numpy() for name, tensor in state.items()}, config)
    assert report.missing == report.unexpected == ()
    jax.tree.map(np.testing.assert_array_equal, params, from_state)
    for name, array in to_huggingface(params, config).items():
        np.testing.assert_array_equal(array, state[name])


def test_new_parameters_are_spread_as_in_transformers():
    config = config_of("projected adapter", vocab_size=60, d_model=32, decoder_ffn_dim=64)
    ours = to_huggingface(split_params(build_model(config, seed=5))[1], config)
    model = transformers.SpeechEncoderDecoderModel(transformers.SpeechEncoderDecoderConfig(**config.to_huggingface()))
    state = model.state_dict()
    assert not ours["decoder.model.decoder.embed_tokens.weight"][config.pad_token_id].any()
    for name, array in ours.items():
        if "pos_conv_embed.conv.parametrizations" in name:
            continue  # there, PyTorch's parametrization undoes the distribution that Transformers asks for
        if array.size >= 300:
            np.testing.assert_allclose(array.std(), state[name].std(), rtol=0.2, err_msg=name)
        else:
            assert (array.std() == 0) == (float(state[name].std()) == 0), name


def test_decay_groups_are_the_trainers():
    from transformers.trainer import Trainer

    config = config_of("widening adapter")
    model = transformers.SpeechEncoderDecoderModel(transformers.SpeechEncoderDecoderConfig(**config.to_huggingface()))
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    _, shapes = split_params(abstract_model(config))
    flat = flatten_params(shapes)
    mask = unflatten_params({name: np.full(leaf.shape, decays(name), np.float32) for name, leaf in flat.items()})
    ours = {name for name, array in to_huggingface(mask, config).items() if array.all()}
    assert ours == theirs - {"decoder.lm_head.weight"}  # the embedding of tokens under its second name


def test_recognition_with_an_adapter(tiny_config, random_params, ragged_audio, rng):
    config = tiny_config("layer", "ctc", add_adapter=True, num_adapter_layers=2, output_hidden_size=10)
    params = random_params(config, rng)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**config.to_huggingface())).eval()
    model.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in to_huggingface(params, config).items()}
    )
    audio = ragged_audio(rng, LENGTHS)
    graphdef, _ = split_params(abstract_model(config))
    output = jax.jit(lambda params: merge(graphdef, params)(audio, np.array(LENGTHS, np.int32)))(params)
    for row in range(len(LENGTHS)):
        expected = model(torch_inputs(audio, LENGTHS, [row]).input_values).logits[0].detach()
        assert output.logit_lengths[row] == len(expected) == config.num_output_frames(LENGTHS[row])
        np.testing.assert_allclose(output.logits[row, : len(expected)], expected, atol=1e-4)
