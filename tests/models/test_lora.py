"""Low-rank factors against PEFT on PyTorch's models: outputs, gradients, files both ways. Needs torch and peft."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.conftest import LAYOUTS
from models.family_models import LENGTHS, frames_of, torch_logits, torch_model, variant

from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    Lora,
    abstract_model,
    build_model,
    decays,
    flatten_params,
    is_factor,
    merge,
    merge_factors,
    split_params,
    to_huggingface,
    unflatten_params,
)
from xtremes_jax.models.peft import to_peft
from xtremes_jax.models.weights import write_tensor_file

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

# Of PEFT's own use of Transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = Lora(rank=3, alpha=7.0)
FAMILIES = ["wav2vec2", "hubert-large", "wavlm-base", "data2vec", "conformer-relative", "conformer-rotary", "bert"]
HEAD = {"ctc": ("lm_head",), "classification": ("projector", "classifier")}


def config_of(name, head="ctc", **changes):
    if name == "wav2vec2":
        import dataclasses

        return dataclasses.replace(LAYOUTS["layer"], head=head, **changes)
    return variant(name, head, **changes)


def adapted(config, random_params, rng, lora=LORA):
    """A model's structure and parameters, those of the base and factors none of which is zero."""
    graphdef, shapes = split_params(abstract_model(config, lora=lora))
    params = flatten_params(random_params(config, rng))
    for name, leaf in flatten_params(shapes).items():
        if is_factor(name):
            params[name] = (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
    return graphdef, params


def trained(params):
    return [name for name in params if is_factor(name) or not name.startswith("encoder.")]


def saved(folder, params, config, lora=LORA, base="base"):
    tensors, settings = to_peft(params, config, lora, trained(params), base)
    write_tensor_file(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return tensors, settings


def logits_of(graphdef, config, audio):
    lengths, frames = np.array(LENGTHS, np.int32), frames_of(config, audio)
    return jax.jit(lambda flat: merge(graphdef, unflatten_params(flat))(audio, lengths, frames=frames).logits)


def other_head(params, rng):
    """The base that an adapter was trained from: its head is another one."""
    return {
        name: value if name.startswith("encoder.") else rng.standard_normal(value.shape).astype(np.float32)
        for name, value in params.items()
        if not is_factor(name)
    }


def check(ours, theirs, atol=1e-4):
    for row, expected in enumerate(theirs):
        np.testing.assert_allclose(ours[row][: len(expected)] if ours.ndim == 3 else ours[row], expected, atol=atol)


@pytest.mark.parametrize("head", ["ctc", "classification"])
@pytest.mark.parametrize("name", FAMILIES)
def test_peft_computes_the_same_with_what_is_written(name, head, random_params, ragged_audio, rng, tmp_path):
    config = config_of(name, head)
    graphdef, params = adapted(config, random_params, rng)
    tensors, settings = saved(tmp_path, params, config)
    audio = ragged_audio(rng, LENGTHS)

    def loss(factors, rest):
        model = merge(graphdef, unflatten_params(rest | factors))
        logits = model(audio, np.array(LENGTHS, np.int32), frames=frames_of(config, audio)).logits
        return jnp.sum(logits * weights), logits

    frames = [config.num_frames(length) for length in LENGTHS]
    shape = (max(frames), config.vocab_size) if head == "ctc" else (config.num_labels,)
    weights = rng.standard_normal((len(LENGTHS), *shape)).astype(np.float32)
    if head == "ctc":
        weights[np.arange(max(frames)) >= np.array(frames)[:, None]] = 0
    factors = {key: value for key, value in params.items() if key in trained(params)}
    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(factors, params)

    base = torch_model(config, unflatten_params(other_head(params, rng)))
    model = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    theirs = list(torch_logits(model, config, audio))
    if not name.startswith("wavlm"):
        check(ours, [logits.detach() for logits in theirs])
        sum((x * torch.from_numpy(w[: len(x)])).sum() for x, w in zip(theirs, weights, strict=True)).backward()
        expected = {
            key.replace(".default", "").replace(".modules_to_save", ""): value.grad.numpy()
            for key, value in model.named_parameters()
            if value.requires_grad
        }
        found, _ = to_peft(params | {k: np.asarray(v) for k, v in gradients.items()}, config, LORA, trained(params), "")
        assert expected.keys() == found.keys() == tensors.keys()
        largest = max(np.abs(gradient).max() for gradient in expected.values())
        for key, gradient in expected.items():
            bound = 1e-3 * np.abs(gradient).max() + 1e-6 * largest
            assert np.abs(found[key] - gradient).max() <= bound, key
    with torch.no_grad():
        check(ours, torch_logits(model.merge_and_unload(), config, audio))
