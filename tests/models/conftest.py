"""What the tests of the model share: tiny configurations, random parameters, ragged audio."""

import dataclasses

import numpy as np
import pytest

from xtremes_jax.models import ModelConfig, abstract_model, flatten_params, split_params, unflatten_params

TINY = ModelConfig(
    conv_dim=(6,) * 4,  # four convolutions compile in half the time of seven, with the same samples per frame
    conv_kernel=(10, 4, 4, 4),
    conv_stride=(5, 4, 4, 4),
    conv_bias=True,
    feat_extract_norm="layer",
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    do_stable_layer_norm=True,
    vocab_size=9,
    num_labels=5,
    classifier_proj_size=7,
)
LAYOUTS = {
    "layer": TINY,
    "group": dataclasses.replace(
        TINY, conv_bias=False, feat_extract_norm="group", do_stable_layer_norm=False, num_conv_pos_embeddings=5
    ),
}


@pytest.fixture
def tiny_config():
    """`tiny_config(layout, head, **changes)`: layout "layer" (as XLS-R) or "group" (as the base models)."""

    def make(layout: str = "layer", head: str | None = "ctc", **changes) -> ModelConfig:
        return dataclasses.replace(LAYOUTS[layout], head=head, **changes)

    return make


@pytest.fixture
def random_params():
    """`random_params(config, rng)`: parameters among which none is 0 or 1, and logits are of order 1."""

    def make(config: ModelConfig, rng: np.random.Generator) -> dict:
        _, shapes = split_params(abstract_model(config))
        params = {}
        for name, leaf in flatten_params(shapes).items():
            noise = rng.standard_normal(leaf.shape).astype(np.float32)
            if name.endswith("kernel"):
                params[name] = noise * np.float32(np.prod(leaf.shape[-3:-1]) ** -0.5)
            elif name.endswith("running_var"):
                params[name] = np.float32(0.5) + noise**2
            elif name.endswith(("scale", "weight_g", "rel_pos_const")):
                params[name] = np.float32(1) + np.float32(0.2) * noise
            else:
                params[name] = np.float32(0.2) * noise
        return unflatten_params(params)

    return make


@pytest.fixture
def ragged_audio():
    """`ragged_audio(rng, lengths)`: int16 waveforms with an offset, 0 past their lengths."""

    def make(rng: np.random.Generator, lengths) -> np.ndarray:
        audio = np.zeros((len(lengths), max(lengths)), np.int16)
        for row, length in enumerate(lengths):
            audio[row, :length] = 1500 * rng.standard_normal(length) + 200 * (row + 1)
        return audio

    return make
