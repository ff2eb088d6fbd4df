"""Compares published shapes of every family with PyTorch Transformers: logits of ragged audio, the same random weights.

    python scripts/check_full_size.py [--models hubert-large w2v-bert-2.0] [--heads ctc classification] [--seconds 1]

Needs torch and about 6 GB of memory (14 GB for the shapes of a billion parameters). Prints a line for each; exits with
1 where a logit differs by more than 1e-3. PyTorch is given each clip alone, so that padding plays no part there.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.models import abstract_model, config_from_huggingface, from_huggingface, merge, split_params

TOLERANCE = 1e-3
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_CONFORMER = _LARGE | _LAYER | {"model_type": "wav2vec2-conformer", "conv_bias": True, "hidden_act": "swish"}
SHAPES: dict[str, dict[str, Any]] = {
    "wav2vec2-base": {"model_type": "wav2vec2"},
    "xls-r-300m": _LARGE | _LAYER | {"model_type": "wav2vec2", "conv_bias": True},
    "mms-1b-all": _LARGE
    | _LAYER
    | {"model_type": "wav2vec2", "conv_bias": True, "adapter_attn_dim": 16}
    | {"hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120},
    "hubert-base": {"model_type": "hubert"},
    "hubert-large": _LARGE | _LAYER | {"model_type": "hubert", "conv_bias": True},
    "hubert-xlarge": _LARGE
    | _LAYER
    | {
        "model_type": "hubert",
        "conv_bias": True,
        "hidden_size": 1280,
        "num_hidden_layers": 48,
        "intermediate_size": 5120,
    },
    "wavlm-base": {"model_type": "wavlm"},
    "wavlm-large": _LARGE | _LAYER | {"model_type": "wavlm"},
    "unispeech-large": _LARGE | _LAYER | {"model_type": "unispeech", "conv_bias": True},
    "unispeech-sat-base": {"model_type": "unispeech-sat"},
    "unispeech-sat-large": _LARGE | _LAYER | {"model_type": "unispeech-sat"},
    "data2vec-audio-base": {"model_type": "data2vec-audio"},
    "data2vec-audio-large": _LARGE | {"model_type": "data2vec-audio"},
    "conformer-relative-large": _CONFORMER | {"position_embeddings_type": "relative"},
    "conformer-rotary-large": _CONFORMER | {"position_embeddings_type": "rotary"},
    "sew-mid": _LARGE | {"model_type": "sew", "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
    "w2v-bert-2.0": {"model_type": "wav2vec2-bert"},
}
"""What a published config.json says beside the defaults of its class in Transformers."""


def reference(fields: dict[str, Any], head: str, clips: list[np.ndarray]):
    """A model of random weights in PyTorch: config.json, weights, and of each clip what it is given and its logits."""
    import torch
    import transformers

    torch.manual_seed(0)
    auto = {"ctc": "AutoModelForCTC", "classification": "AutoModelForAudioClassification"}[head]
    built = transformers.AutoConfig.for_model(**fields, vocab_size=64, num_labels=14)
    model = getattr(transformers, auto).from_config(built).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.ndim < 2
            ):  # Transformers starts biases with 0 and norms with 1, by which mistakes would not show
                parameter.add_(0.1 * torch.randn_like(parameter))
    config = json.loads(model.config.to_json_string())
    family = config_from_huggingface(config, head=head)
    extractor = getattr(transformers, family.feature_extractor)()
    features, logits = [], []
    for clip in clips:
        inputs = extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        if "input_features" in inputs:
            given = inputs.input_features[:, : int(inputs.attention_mask.sum())]
            features.append(given[0].numpy())
        else:
            given = inputs.input_values
        with torch.no_grad():
            logits.append(model(given).logits[0].numpy())
    return family, {name: tensor.numpy() for name, tensor in model.state_dict().items()}, features, logits


def check(name: str, head: str, seconds: float) -> bool:
    """Compares one shape with one head and prints the outcome; whether it is within the tolerance."""
    rng = np.random.default_rng(0)
    longest = int(seconds * SAMPLE_RATE)
    lengths = np.array([longest, int(0.63 * longest)], np.int32)
    audio = (2000 * rng.standard_normal((2, longest))).astype(np.int16)
    audio[np.arange(longest) >= lengths[:, None]] = 0
    clips = [audio[row, :length].astype(np.float32) / 32768 for row, length in enumerate(lengths)]

    started = time.perf_counter()
    config, tensors, features, theirs = reference(SHAPES[name], head, clips)
    torch_seconds = time.perf_counter() - started
    started = time.perf_counter()
    params, report = from_huggingface(tensors, config)
    size = sum(tensor.size for tensor in tensors.values())
    del tensors
    gc.collect()
    graphdef, _ = split_params(abstract_model(config))
    frames = None
    if features:  # the same, so that models are compared on one input
        frames = np.zeros((2, max(len(clip) for clip in features), features[0].shape[1]), np.float32)
        for row, clip in zip(frames, features, strict=True):
            row[: len(clip)] = clip
    logits = jax.jit(lambda params: merge(graphdef, params)(audio, lengths, frames=frames).logits)(params)
    ours = [row[: len(expected)] if head == "ctc" else row for row, expected in zip(logits, theirs, strict=True)]
    difference = max(float(np.abs(row - expected).max()) for row, expected in zip(ours, theirs, strict=True))
    largest = max(float(np.abs(row).max()) for row in theirs)
    fits = difference <= TOLERANCE and not report.missing and not report.unexpected
    print(
        f"{name:26s} {head:15s} {size / 1e6:7.1f} M parameters, largest difference {difference:.1e} of logits up to "
        f"{largest:.2f}; PyTorch {torch_seconds:.0f} s, JAX and its compilation {time.perf_counter() - started:.0f} s"
        f"{'' if fits else f'  FAILS {report}'}",
        flush=True,
    )
    return fits


def main() -> int:
    """Runs the comparisons; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="MODEL", help="default: all"
    )
    parser.add_argument("--heads", nargs="+", choices=["ctc", "classification"], default=["ctc"])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the longer of the two clips")
    arguments = parser.parse_args()
    fits = [check(name, head, arguments.seconds) for name in arguments.models for head in arguments.heads]
    return 0 if all(fits) else 1


if __name__ == "__main__":
    sys.exit(main())
