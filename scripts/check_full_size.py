"""Compares the full XLS-R-300M shape with PyTorch Transformers on the same random weights: logits of ragged audio.

    python scripts/check_full_size.py [--head ctc|classification] [--seconds 1.0]

Needs torch and about 6 GB of memory. Prints the largest difference over the attended frames; exits with 1 above 1e-3.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.models import PRESETS, ModelConfig, abstract_model, from_huggingface, merge, split_params

TOLERANCE = 1e-3


def reference(config: ModelConfig, audio: np.ndarray, lengths: np.ndarray):
    """PyTorch's logits of the padded batch with its attention mask, and the weights that gave them."""
    import torch
    import transformers

    torch.manual_seed(0)
    names = {"ctc": "Wav2Vec2ForCTC", "classification": "Wav2Vec2ForSequenceClassification"}
    model = getattr(transformers, names[config.head])(transformers.Wav2Vec2Config(**config.to_huggingface())).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    clips = [audio[row, :length].astype(np.float32) / 32768 for row, length in enumerate(lengths)]
    inputs = extractor(clips, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs.input_values, attention_mask=inputs.attention_mask).logits.numpy()
    return logits, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def main() -> int:
    """Runs the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", choices=["ctc", "classification"], default="ctc")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the longer of the two clips")
    arguments = parser.parse_args()
    config = dataclasses.replace(PRESETS["xls_r_300m"], head=arguments.head, vocab_size=64, num_labels=14)

    rng = np.random.default_rng(0)
    longest = int(arguments.seconds * SAMPLE_RATE)
    lengths = np.array([longest, int(0.63 * longest)], np.int32)
    audio = (2000 * rng.standard_normal((2, longest))).astype(np.int16)
    audio[np.arange(longest) >= lengths[:, None]] = 0

    started = time.perf_counter()
    theirs, tensors = reference(config, audio, lengths)
    print(f"PyTorch: {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    params, report = from_huggingface(tensors, config)
    del tensors
    graphdef, _ = split_params(abstract_model(config))
    output = jax.jit(lambda params: merge(graphdef, params)(audio, lengths))(params)
    ours = np.asarray(output.logits)
    print(f"JAX, compilation included: {time.perf_counter() - started:.1f} s; conversion left over {report}")

    if arguments.head == "ctc":
        attended = np.arange(ours.shape[1]) < np.asarray(output.logit_lengths)[:, None]
        ours, theirs = ours[attended], theirs[attended]
    difference = float(np.abs(ours - theirs).max())
    print(f"largest difference {difference:.2e}, of logits up to {np.abs(theirs).max():.2f}; allowed {TOLERANCE:.0e}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
