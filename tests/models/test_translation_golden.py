"""Speech translation against golden tensors that PyTorch made: logits, loss, gradients and translations."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.models import (
    GenerationConfig,
    TranslationConfig,
    abstract_model,
    from_huggingface,
    generate,
    merge,
    split_params,
    to_huggingface,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "translation.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(golden):
    """Configuration, graph definition and parameters."""
    config = TranslationConfig.from_huggingface(json.loads(str(golden["config"])))
    params, report = from_huggingface(unpack(golden, "state"), config)
    assert report.missing == report.unexpected == ()
    return config, split_params(abstract_model(config))[0], params


def unpack(golden, name):
    """The tensors that make_translation.py laid end to end."""
    shapes = json.loads(str(golden["shapes"]))
    parts = np.split(golden[name], np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def test_logits_loss_and_gradients_are_those_of_pytorch(golden, model):
    config, graphdef, params = model
    inputs = [golden[name] for name in ("audio", "audio_lengths", "labels", "label_lengths")]
    valid = np.arange(golden["labels"].shape[1]) < golden["label_lengths"][:, None]

    def loss(params):
        output = merge(graphdef, params)(*inputs)
        picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), golden["labels"][:, :, None], axis=2)[:, :, 0]
        return -jnp.sum(picked * valid) / valid.sum(), output

    (mean, output), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert output.logits.dtype == jnp.float32
    np.testing.assert_array_equal(output.logit_lengths, golden["label_lengths"])
    for row, count in enumerate(golden["label_lengths"]):
        np.testing.assert_allclose(output.logits[row, :count], golden[f"logits/{row}"], atol=1e-4)
    np.testing.assert_allclose(mean, golden["loss"], atol=1e-4)
    expected, ours = unpack(golden, "gradient"), to_huggingface(gradients, config)
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        bound = 1e-3 * np.abs(gradient).max() + 1e-6 * largest
        assert np.abs(ours[name] - gradient).max() <= bound, name
        assert ours[name].any() or name == "encoder.masked_spec_embed", name


@pytest.mark.parametrize("name", ["greedy", "beams"])
def test_translations_are_those_of_pytorch(name, golden, model):
    config, graphdef, params = model
    search = GenerationConfig.from_huggingface(json.loads(str(golden["searches"]))[name], config)
    clips = golden["audio"], golden["audio_lengths"]
    found = jax.jit(lambda params: generate(merge(graphdef, params), *clips, search))(params)
    np.testing.assert_array_equal(found.tokens, golden[f"tokens/{name}"])
    assert len({tuple(row) for row in golden[f"tokens/{name}"]}) >= 3
