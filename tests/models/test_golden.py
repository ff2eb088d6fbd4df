"""Logits and gradients of both layouts and all heads, against the golden tensors that PyTorch made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.models import ModelConfig, abstract_model, from_huggingface, merge, split_params, to_huggingface

GOLDEN = Path(__file__).parent.parent / "golden"
HEADS = {"ctc": ("ctc", False), "classification": ("classification", False), "weighted": ("classification", True)}


def unpack(shapes: dict, values: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that make_golden.py laid end to end."""
    sizes = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(values, sizes[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@pytest.fixture(params=["layer", "group"])
def golden(request):
    """One file of golden tensors."""
    with np.load(GOLDEN / f"wav2vec2_{request.param}.npz") as file:
        return dict(file)


def golden_model(golden, head):
    """Configuration and parameters of a golden file, with one of its heads."""
    kind, weighted = HEADS[head]
    fields = json.loads(str(golden["config"])) | {"use_weighted_layer_sum": weighted}
    config = ModelConfig.from_huggingface(fields, head=kind)
    tensors = unpack(json.loads(str(golden["shapes"])), golden["state"])
    if head == "classification":
        del tensors["layer_weights"]
    params, report = from_huggingface(tensors, config)
    assert report.new_head == ()
    return config, params


@pytest.mark.parametrize("head", HEADS)
def test_logits_and_gradients_are_those_of_pytorch(golden, head):
    compare(golden, head)


def compare(golden, head):
    """Checks the logits of all rows, and the gradients where the file has them."""
    config, params = golden_model(golden, head)
    expected = [golden[f"logits/{head}/{row}"] for row in range(len(golden["audio"]))]
    weights = [golden.get(f"weights/{head}/{row}", np.ones_like(logits)) for row, logits in enumerate(expected)]
    if head == "ctc":  # the loss reads valid frames only
        weights = [np.pad(rows, ((0, len(expected[0]) - len(rows)), (0, 0))) for rows in weights]
    graphdef, _ = split_params(abstract_model(config))

    def loss(params):
        output = merge(graphdef, params)(golden["audio"], golden["audio_lengths"])
        return jnp.sum(output.logits * np.stack(weights)), output

    gradients, output = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert output.logits.dtype == jnp.float32
    for row, logits in enumerate(expected):
        ours = output.logits[row]
        if head == "ctc":
            assert output.logit_lengths[row] == len(logits)
            ours = ours[: len(logits)]
        np.testing.assert_allclose(ours, logits, atol=1e-4)
    if f"gradient/{head}" in golden:
        same_gradients(to_huggingface(gradients, config), golden, head)


def same_gradients(ours, golden, head):
    """Checks every parameter's gradient to 1e-3 of its largest element."""
    theirs = unpack(json.loads(str(golden["shapes"])), golden[f"gradient/{head}"])
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name, gradient in ours.items():
        # The second term is for gradients that are 0 but for rounding (the bias of the keys).
        bound = 1e-3 * np.abs(theirs[name]).max() + 1e-6 * largest
        assert np.abs(gradient - theirs[name]).max() <= bound, name


AS_USERS_COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, test_golden
with np.load(test_golden.GOLDEN / "wav2vec2_layer.npz") as file:
    test_golden.compare(dict(file), "ctc")
print("agrees")
"""


def test_it_also_agrees_with_the_optimization_that_users_have():
    """The other tests compile otherwise (see conftest.py), which could hide what that breaks."""
    quick = ("--xla_backend_optimization_level", "--xla_cpu_use_fusion_emitters")
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(quick)]
    environment = os.environ | {"XLA_FLAGS": " ".join(kept), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", AS_USERS_COMPILE, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "agrees", done.stderr[-3000:]
