"""Writes the golden tensors of speech translation, from PyTorch: `python tests/golden/make_translation.py`.

Needs torch and transformers (the file in use was made with torch 2.13.0 and transformers 5.24.0). `translation.npz`
holds, for a pre-norm encoder with a widening adapter and an mBART decoder,

- `config`: the contents of config.json, as a string,
- `audio`, `audio_lengths`, `labels`, `label_lengths`: ragged int16 waveforms and token ids, 0 past their lengths,
- `shapes`: name -> shape of every tensor of the state dict but the tied output, as a JSON string,
- `state`: all their values, one after the other in that order,
- `logits/ROW`: the logits of each clip's labels, the clip alone and unpadded, normalised by Wav2Vec2FeatureExtractor,
- `loss`: the mean cross entropy of all labels,
- `gradient`: of that loss, laid out as `state`, with 0 where PyTorch has none,
- `tokens/SEARCH`: translations of each clip alone, padded, for the generation settings of `searches`, a JSON string.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from models.translation_models import config_of, parameters, torch_inputs, torch_model

LENGTHS = (9600, 6433, 3321, 7040)
LABEL_LENGTHS = (7, 3, 6, 1)
TOKENS = {"decoder_start_token_id": 3, "eos_token_id": 2, "pad_token_id": 1, "max_length": 20}
SEARCHES = {
    "greedy": TOKENS,
    "beams": TOKENS | {"num_beams": 4, "length_penalty": 0.7, "no_repeat_ngram_size": 3, "early_stopping": True},
}


def make() -> dict[str, np.ndarray]:
    """All arrays of the file."""
    rng = np.random.default_rng(0)
    config = config_of("widening adapter")
    model = torch_model(config, parameters(config, rng, is_lively=True))
    model.generation_config = transformers.GenerationConfig()
    audio = np.zeros((len(LENGTHS), max(LENGTHS)), np.int16)
    labels = np.zeros((len(LENGTHS), max(LABEL_LENGTHS)), np.int32)
    for row, (length, count) in enumerate(zip(LENGTHS, LABEL_LENGTHS, strict=True)):
        audio[row, :length] = 1500 * rng.standard_normal(length) + 200 * (row + 1)
        labels[row, :count] = rng.integers(4, config.vocab_size, count)
    arrays = {
        "config": np.array(json.dumps(config.to_huggingface())),
        "searches": np.array(json.dumps(SEARCHES)),
        "audio": audio,
        "audio_lengths": np.array(LENGTHS, np.int32),
        "labels": labels,
        "label_lengths": np.array(LABEL_LENGTHS, np.int32),
    }
    total = torch.zeros(())
    found = {name: [] for name in SEARCHES}
    for row, count in enumerate(LABEL_LENGTHS):
        inputs = torch_inputs(audio, LENGTHS, [row])
        targets = torch.from_numpy(labels[row : row + 1, :count]).long()
        output = model(inputs.input_values, labels=targets)
        arrays[f"logits/{row}"] = output.logits[0].detach().numpy()
        total = total + output.loss * count
        for name, search in SEARCHES.items():
            tokens = model.generate(
                inputs.input_values, generation_config=transformers.GenerationConfig(**search)
            ).numpy()[0]
            found[name].append(np.pad(tokens, (0, search["max_length"] - len(tokens)), constant_values=1))
    loss = total / sum(LABEL_LENGTHS)
    loss.backward()
    values = dict(model.named_parameters())
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in values.values()]
    shapes = {name: list(value.shape) for name, value in values.items()}
    return arrays | {
        "loss": loss.detach().numpy(),
        "shapes": np.array(json.dumps(shapes)),
        "state": flat(values.values()),
        "gradient": flat(gradients),
        **{f"tokens/{name}": np.stack(rows).astype(np.int32) for name, rows in found.items()},
    }


def flat(tensors) -> np.ndarray:
    """All values of some tensors, one after the other."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


if __name__ == "__main__":
    path = Path(__file__).with_name("translation.npz")
    np.savez_compressed(path, **make())
    print(path.name, path.stat().st_size, "bytes")
