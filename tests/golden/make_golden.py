"""Writes the golden tensors of the wav2vec 2.0 models, from PyTorch Transformers: `python tests/golden/make_golden.py`.

Needs torch and transformers (the files in use were made with torch 2.13.0 and transformers 5.23.0). For each layout
(`layer`: layer norm and pre-norm, as XLS-R; `group`: group norm and post-norm, as the base models) one file holds

- `config`: the contents of config.json, as a string,
- `audio`, `audio_lengths`: ragged int16 waveforms,
- `shapes`: name -> shape of every tensor of the state dict, with all heads, as a JSON string,
- `state`: all their values, one after the other in that order,
- `logits/HEAD/ROW`: the logits of each clip alone and unpadded, normalised by Wav2Vec2FeatureExtractor, for the heads
  `ctc`, `classification`, and `weighted` (classification on the weighted sum of layers),
- `weights/HEAD/ROW`, `gradient/HEAD`: the gradient of the sum over rows of `sum(logits * weights)`, laid out as
  `state`, with 0 where PyTorch has none, for `ctc` and `weighted`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)

LENGTHS = (4000, 2345, 1111)
SHAPES = {
    "conv_dim": [6] * 7,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 9,
    "classifier_proj_size": 7,
    "id2label": {str(index): f"LABEL_{index}" for index in range(5)},
    "label2id": {f"LABEL_{index}": index for index in range(5)},
}
LAYOUTS = {
    "layer": {
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "num_conv_pos_embeddings": 8,
    },
    "group": {"num_conv_pos_embeddings": 5},
}
HEADS = ("ctc", "classification", "weighted")


def build(fields: dict, head: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A model in evaluation mode; `state` gains random values for the parameters it does not hold yet."""
    config = Wav2Vec2Config(**fields, use_weighted_layer_sum=head == "weighted")
    model = (Wav2Vec2ForCTC if head == "ctc" else Wav2Vec2ForSequenceClassification)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in state:
                state[name] = random_like(name, parameter)
            parameter.copy_(state[name])
    return model


def random_like(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Random values that keep the logits of order 1 and leave no parameter at 0 or 1."""
    noise = torch.randn_like(parameter)
    if parameter.ndim > 1 and not name.endswith("original0"):
        return noise * parameter[0].numel() ** -0.5
    if name.endswith(("norm.weight", "original0")):
        return 1 + 0.2 * noise
    return 0.2 * noise


def clips(rng: np.random.Generator) -> np.ndarray:
    """Ragged int16 noise with an offset, 0 in the padding."""
    audio = np.zeros((len(LENGTHS), max(LENGTHS)), np.int16)
    for row, length in enumerate(LENGTHS):
        audio[row, :length] = 1500 * rng.standard_normal(length) + 200 * (row + 1)
    return audio


def make(layout: str) -> dict[str, np.ndarray]:
    """All arrays of one file."""
    torch.manual_seed(20261122)
    rng = np.random.default_rng(20261122)
    fields = SHAPES | LAYOUTS[layout]
    audio = clips(rng)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    state: dict[str, torch.Tensor] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    arrays = {
        "config": np.array(json.dumps({"model_type": "wav2vec2"} | fields)),
        "audio": audio,
        "audio_lengths": np.array(LENGTHS, np.int32),
    }
    for head in HEADS:
        model = build(fields, head, state)
        total = torch.zeros(())
        for row, length in enumerate(LENGTHS):
            samples = audio[row, :length].astype(np.float32) / 32768
            values = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values
            logits = model(values).logits[0]
            weights = rng.standard_normal(logits.shape).astype(np.float32)
            arrays[f"logits/{head}/{row}"] = logits.detach().numpy()
            if head != "classification":
                arrays[f"weights/{head}/{row}"] = weights
                total = total + (logits * torch.from_numpy(weights)).sum()
        if head != "classification":
            total.backward()
            gradients[head] = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    for head, gradient in gradients.items():
        arrays[f"gradient/{head}"] = flat([gradient.get(name, torch.zeros_like(state[name])) for name in state])
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    return arrays | {"shapes": np.array(json.dumps(shapes)), "state": flat(list(state.values()))}


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    """All values of some tensors, one after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors]).numpy()


if __name__ == "__main__":
    for layout in LAYOUTS:
        path = Path(__file__).with_name(f"wav2vec2_{layout}.npz")
        np.savez_compressed(path, **make(layout))
        print(path.name, path.stat().st_size, "bytes")
