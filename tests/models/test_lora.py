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
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

# Of PEFT's own use of Transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA = Lora(rank=3, alpha=7.0)
# Not WavLM, which has a test of its own.
FAMILIES = ["wav2vec2", "hubert-large", "data2vec", "conformer-relative", "conformer-rotary", "bert"]
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


def peft_of(params, config, base="", lora=LORA):
    ordinary = to_huggingface(unflatten_params(merge_factors(params, lora)), config)
    return to_peft(params, ordinary, config, lora, trained(params), base)


def saved(folder, params, config, lora=LORA, base="base"):
    tensors, settings = peft_of(params, config, base, lora)
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


def weights_of(config, rng):
    """What each logit counts in a sum, 0 past the end of a clip."""
    frames = np.array([config.num_frames(length) for length in LENGTHS])
    shape = (max(frames), config.vocab_size) if config.head == "ctc" else (config.num_labels,)
    weights = rng.standard_normal((len(LENGTHS), *shape)).astype(np.float32)
    if config.head == "ctc":
        weights[np.arange(max(frames)) >= frames[:, None]] = 0
    return weights


def ours(graphdef, params, config, audio, weights):
    """Gradients by what is trained, under PEFT's names, and logits."""

    def loss(factors, rest):
        model = merge(graphdef, unflatten_params(rest | factors))
        logits = model(audio, np.array(LENGTHS, np.int32), frames=frames_of(config, audio)).logits
        return jnp.sum(logits * weights), logits

    factors = {key: value for key, value in params.items() if key in trained(params)}
    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(factors, params)
    named = params | {name: np.asarray(value) for name, value in gradients.items()}
    return peft_of(named, config)[0], logits


def compare(found, expected):
    """Checks every gradient to 1e-3 of its largest element."""
    assert expected.keys() == found.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for key, gradient in expected.items():
        # The second term is for gradients that are 0 but for rounding (of the keys' bias).
        bound = 1e-3 * np.abs(gradient).max() + 1e-6 * largest
        assert np.abs(found[key] - gradient).max() <= bound, key


def summed(logits, weights):
    return sum((x * torch.from_numpy(w[: len(x)])).sum() for x, w in zip(logits, weights, strict=True))


@pytest.mark.parametrize("head", ["ctc", "classification"])
@pytest.mark.parametrize("name", FAMILIES)
def test_peft_computes_the_same_with_what_is_written(name, head, random_params, ragged_audio, rng, tmp_path):
    config = config_of(name, head)
    graphdef, params = adapted(config, random_params, rng)
    saved(tmp_path, params, config)
    audio, weights = ragged_audio(rng, LENGTHS), weights_of(config, rng)
    gradients, logits = ours(graphdef, params, config, audio, weights)
    base = torch_model(config, unflatten_params(other_head(params, rng)))
    model = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    theirs = list(torch_logits(model, config, audio))
    check(logits, [row.detach() for row in theirs])
    summed(theirs, weights).backward()
    expected = {
        key.replace(".default", "").replace(".modules_to_save", ""): value.grad.numpy()
        for key, value in model.named_parameters()
        if value.requires_grad
    }
    compare(gradients, expected)
    # Weight decay is on the same of them as the Trainer has it.
    decayed = {key.replace(".default", "") for key in transformers.Trainer.get_decay_parameter_names(None, model)}
    assert all(key in decayed for key in expected if ".lora_" in key)
    with torch.no_grad():
        check(logits, torch_logits(model.merge_and_unload(), config, audio))


class LowRank(torch.nn.Module):
    """A matrix and its low-rank update, by their definition."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(torch.from_numpy(factor)) for factor in (first, second))

    def forward(self, weight):
        return weight + LORA.alpha / LORA.rank * self.second @ self.first


@pytest.mark.parametrize("layout", ["base", "large"])
def test_wavlm_attends_with_what_it_learns(layout, random_params, ragged_audio, rng, tmp_path):
    """Its attention in PyTorch reads matrices past their modules, so PEFT reaches them only when it has merged."""
    config = config_of(f"wavlm-{layout}")
    graphdef, params = adapted(config, random_params, rng)
    tensors, _ = saved(tmp_path, params, config)
    audio, weights = ragged_audio(rng, LENGTHS), weights_of(config, rng)
    gradients, logits = ours(graphdef, params, config, audio, weights)
    base = torch_model(config, unflatten_params(other_head(params, rng)))
    with torch.no_grad():
        merged = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
        check(logits, torch_logits(merged, config, audio))

    model = torch_model(config, unflatten_params({k: v for k, v in params.items() if not is_factor(k)}))
    stems = {key.rpartition(".lora_")[0] for key in tensors if ".lora_" in key}
    rows = {}
    for stem in stems:
        rows[stem] = LowRank(tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"])
        module = model.get_submodule(stem.removeprefix("base_model.model."))
        torch.nn.utils.parametrize.register_parametrization(module, "weight", rows[stem])
    theirs = list(torch_logits(model, config, audio))
    check(logits, [row.detach() for row in theirs])
    summed(theirs, weights).backward()
    expected = {f"{stem}.lora_A.weight": row.first.grad.numpy() for stem, row in rows.items()}
    expected |= {f"{stem}.lora_B.weight": row.second.grad.numpy() for stem, row in rows.items()}
    expected |= {
        f"base_model.model.lm_head.{name}": value.grad.numpy() for name, value in model.lm_head.named_parameters()
    }
    compare(gradients, expected)


@pytest.mark.parametrize("name", ["wavlm-large", "bert", "wav2vec2"])
def test_at_first_nothing_changes(name, ragged_audio, rng):
    config = config_of(name)
    audio = ragged_audio(rng, LENGTHS)
    plain, base = split_params(build_model(config, seed=5))
    graphdef, params = split_params(build_model(config, seed=5, lora=LORA))
    base, params = flatten_params(base), flatten_params(params)
    assert all((params[key] == value).all() for key, value in base.items())
    for key in params.keys() - base.keys():
        bound = params[key].shape[-2] ** -0.5
        assert key.endswith("lora_B") or 0.8 * bound < np.abs(params[key]).max() <= bound
        assert key.endswith("lora_A") or not params[key].any()
        assert decays(key)
    ours = logits_of(graphdef, config, audio)(params)
    # But for the order in which another program sums.
    np.testing.assert_allclose(ours, logits_of(plain, config, audio)(base), atol=1e-6)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-5), ("bfloat16", 0.1), ("float16", 0.02)])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_a_merged_model_says_the_same(dtype, atol, remat, random_params, ragged_audio, rng):
    config = config_of("wav2vec2")
    _, params = adapted(config, random_params, rng)
    audio = ragged_audio(rng, LENGTHS)
    graphdef, _ = split_params(abstract_model(config, dtype=jnp.dtype(dtype), remat=remat, lora=LORA))
    plain, _ = split_params(abstract_model(config))
    merged = merge_factors(params, LORA)
    assert merged.keys() == {name for name in params if not is_factor(name)}
    expected = logits_of(plain, config, audio)(merged)
    np.testing.assert_allclose(logits_of(graphdef, config, audio)(params), expected, atol=atol)


def test_some_maps_may_be_adapted_and_no_others(random_params, rng, tmp_path):
    config = config_of("wavlm-large")
    _, params = adapted(config, random_params, rng, Lora(2, 2.0, ("gru_rel_pos_linear", "v_proj")))
    layers = "encoder.encoder.layers.attention"
    stems = [f"{layers}.{name}" for name in ("gru_rel_pos_linear", "v_proj")]
    assert {name for name in params if is_factor(name)} == {f"{stem}.lora_{end}" for stem in stems for end in "AB"}
    with pytest.raises(InputError, match="--lora_targets fc1: .* gru_rel_pos_linear, .* q_proj, v_proj"):
        abstract_model(config, lora=Lora(2, 2.0, ("fc1",)))


def test_names_of_targets_find_no_other_module(random_params, rng, tmp_path):
    """An adapter of the same family attends too, by modules of the same names, which are not adapted."""
    config = config_of("bert", add_adapter=True)
    graphdef, params = adapted(config, random_params, rng)
    _, settings = saved(tmp_path, params, config)
    assert "encoder.layers.1.self_attn.linear_q" in settings["target_modules"]
    base = torch_model(config, unflatten_params(other_head(params, rng)))
    model = peft.PeftModel.from_pretrained(base, tmp_path)
    adapted_here = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted_here) == 2 * 8 and not any(".adapter." in name for name in adapted_here)
