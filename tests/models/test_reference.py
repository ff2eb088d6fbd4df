"""PyTorch Transformers live, on fresh random weights: logits, gradients, exported directories, decay groups.

Needs torch; where it is absent, test_golden.py compares with tensors that it made.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.models import (
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

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (3600, 2345, 1100)
CASES = [
    (layout, head, weighted)
    for layout in ("layer", "group")
    for head, weighted in (("ctc", False), ("classification", False), ("classification", True))
] + [("layer", "retrieval", False)]


def torch_model(config, params):
    """The same model in PyTorch, in evaluation mode."""
    names = {"ctc": "Wav2Vec2ForCTC"} | dict.fromkeys(
        ("classification", "retrieval"), "Wav2Vec2ForSequenceClassification"
    )
    built = getattr(transformers, names[config.head])(transformers.Wav2Vec2Config(**config.to_huggingface())).eval()
    tensors = {name: torch.from_numpy(array.copy()) for name, array in to_huggingface(params, config).items()}
    built.load_state_dict(tensors, strict=True)
    return built


def torch_inputs(audio, padded):
    """Each clip alone, or all of them padded with their mask, normalised by the feature extractor."""
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    clips = [audio[row, :length].astype(np.float32) / 32768 for row, length in enumerate(LENGTHS)]
    for batch in [clips] if padded else [[clip] for clip in clips]:
        yield extractor(batch, sampling_rate=16_000, padding=True, return_tensors="pt")


def torch_logits(model, audio, padded):
    """One tensor of logits for each clip."""
    logits = []
    for inputs in torch_inputs(audio, padded):
        logits += list(model(inputs.input_values, attention_mask=inputs.attention_mask if padded else None).logits)
    return logits


@pytest.mark.parametrize(("layout", "head", "weighted"), CASES)
def test_logits_and_gradients(layout, head, weighted, tiny_config, random_params, ragged_audio, rng):
    config = tiny_config(layout, head, use_weighted_layer_sum=weighted)
    params = random_params(config, rng)
    audio = ragged_audio(rng, LENGTHS)
    frames = [config.num_frames(length) for length in LENGTHS]
    shape = (max(frames), config.vocab_size) if head == "ctc" else (config.num_labels,)
    weights = rng.standard_normal((len(LENGTHS), *shape)).astype(np.float32)
    if head == "ctc":
        weights[np.arange(max(frames)) >= np.array(frames)[:, None]] = 0  # attended frames only
    graphdef, _ = split_params(abstract_model(config))

    def loss(params):
        logits = merge(graphdef, params)(audio, np.array(LENGTHS, np.int32)).logits
        return jnp.sum(logits * weights), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    model = torch_model(config, params)
    # PyTorch's group norm takes padding into its statistics, so those models are only compared clip by clip.
    for padded in (True, False) if layout == "layer" else (False,):
        theirs = torch_logits(model, audio, padded)
        if head == "retrieval":
            theirs = [logits / logits.norm() for logits in theirs]
        for row, count in enumerate(frames):
            valid = slice(count) if head == "ctc" else slice(None)
            np.testing.assert_allclose(logits[row][valid], theirs[row][valid].detach(), atol=1e-4)
    total = sum((ours * torch.from_numpy(w[: len(ours)])).sum() for ours, w in zip(theirs, weights, strict=True))
    total.backward()
    compare_gradients(to_huggingface(gradients, config), model)


def compare_gradients(ours, model):
    """Checks every parameter's gradient to 1e-3 of its largest element."""
    # PyTorch has no gradient for what is not used: the mask vector, and under a weighted sum the encoder's last norm.
    theirs = {
        name: np.zeros(value.shape, np.float32) if value.grad is None else value.grad.numpy()
        for name, value in model.named_parameters()
    }
    assert not theirs["wav2vec2.masked_spec_embed"].any() and ours.keys() == theirs.keys()
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name, expected in theirs.items():
        # The second term is for gradients that are 0 but for rounding (the bias of the keys).
        bound = 1e-3 * np.abs(expected).max() + 1e-6 * largest
        assert np.abs(ours[name] - expected).max() <= bound, name


@pytest.mark.parametrize(("layout", "head", "weighted"), [CASES[0], CASES[5]])
def test_an_exported_directory_reloads_in_transformers(
    layout, head, weighted, tiny_config, random_params, ragged_audio, rng, tmp_path
):
    from safetensors.numpy import save_file

    config = tiny_config(layout, head, use_weighted_layer_sum=weighted)
    params = random_params(config, rng)
    (tmp_path / "config.json").write_text(json.dumps(config.to_huggingface()))
    save_file(to_huggingface(params, config), tmp_path / "model.safetensors", metadata={"format": "pt"})
    auto = {"ctc": "AutoModelForCTC", "classification": "AutoModelForAudioClassification"}[head]
    model, info = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    audio = ragged_audio(rng, LENGTHS)
    graphdef, _ = split_params(abstract_model(config))
    ours = jax.jit(lambda params: merge(graphdef, params)(audio, np.array(LENGTHS, np.int32)).logits)(params)
    for row, theirs in enumerate(torch_logits(model.eval(), audio, padded=False)):
        np.testing.assert_allclose(ours[row][: len(theirs)], theirs.detach(), atol=1e-5)


def test_a_model_saved_by_transformers_loads(tiny_config):
    config = tiny_config("group", "classification")
    model = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**config.to_huggingface()))
    params, report = from_huggingface({n: t.numpy() for n, t in model.state_dict().items()}, config)
    assert report.missing == report.unexpected == ()
    for name, array in to_huggingface(params, config).items():
        np.testing.assert_array_equal(array, model.state_dict()[name])


def test_a_pretraining_checkpoint_loads(tiny_config):
    config = tiny_config()
    fields = dataclasses.replace(config, head=None).to_huggingface() | {"codevector_dim": 8, "proj_codevector_dim": 8}
    model = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**fields))
    params, report = from_huggingface({n: t.numpy() for n, t in model.state_dict().items()}, config)
    assert {name.split(".")[0] for name in report.unexpected} == {"quantizer", "project_q", "project_hid"}
    assert set(report.missing) == {"lm_head.weight", "lm_head.bias"}


@pytest.mark.parametrize("layout", ["layer", "group"])
def test_new_parameters_are_spread_as_in_transformers(layout, tiny_config):
    config = tiny_config(layout, "classification", conv_dim=(32,) * 4, hidden_size=48, intermediate_size=96)
    ours = to_huggingface(split_params(build_model(config, seed=5))[1], config)
    model = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**config.to_huggingface()))
    for name, tensor in model.state_dict().items():
        if "pos_conv_embed.conv.parametrizations" in name:
            continue  # there, PyTorch's parametrization undoes the distribution that Transformers asks for
        assert abs(ours[name].mean() - float(tensor.mean())) <= 0.6 * float(tensor.abs().max()), name
        if tensor.numel() >= 300:
            np.testing.assert_allclose(ours[name].std(), tensor.std(), rtol=0.2, err_msg=name)
        else:
            assert (ours[name].std() == 0) == (float(tensor.std()) == 0), name


@pytest.mark.parametrize("layout", ["layer", "group"])
def test_decay_groups_are_the_trainers(layout, tiny_config):
    from transformers.trainer import Trainer

    config = tiny_config(layout, "classification", use_weighted_layer_sum=True)
    model = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**config.to_huggingface()))
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    # A mask over our parameters, carried through the table of names.
    _, shapes = split_params(abstract_model(config))
    flat = flatten_params(shapes)
    mask = unflatten_params({name: np.full(leaf.shape, decays(name), np.float32) for name, leaf in flat.items()})
    assert {name for name, array in to_huggingface(mask, config).items() if array.all()} == theirs
