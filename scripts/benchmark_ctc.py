"""Times the CTC loss with its gradient beside optax's (and PyTorch's, where installed), and compares values and memory.

    python scripts/benchmark_ctc.py [--batch 16] [--frames 1500] [--vocab 64] [--labels 300]

Interleaved on the same random, ragged batch, both of JAX compiled with the options of a training step. Prints the
ratios first (above 1: ours is faster, or smaller), then each one's median time with half its interquartile range,
compile time and temporary memory as XLA plans it. Ends with status 1 where losses or gradients differ by more than 1e-4
(losses relatively, from PyTorch's in float64), or a hostile input gives a number that is not finite.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from benchmarks.contenders import median_and_spread

from xtremes_jax.training.ctc import ctc_loss
from xtremes_jax.training.devices import compiler_options

TOLERANCE = 1e-4


def draw(wanted: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Random logits, labels with repeats, and ragged lengths that can be aligned."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((wanted.batch, wanted.frames, wanted.vocab)).astype(np.float32)
    labels = rng.integers(1, wanted.vocab, (wanted.batch, wanted.labels)).astype(np.int32)
    frames = rng.integers(wanted.frames * 2 // 3, wanted.frames + 1, wanted.batch).astype(np.int32)
    lengths = np.minimum(rng.integers(wanted.labels // 2, wanted.labels + 1, wanted.batch), frames // 2)
    frames[0], lengths[0] = wanted.frames, min(wanted.labels, wanted.frames // 2)
    return logits, frames, labels, lengths.astype(np.int32)


def ours(logits: jax.Array, frames: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
    """Losses of the rows."""
    return ctc_loss(logits, frames, labels, lengths, 0)


def optaxs(logits: jax.Array, frames: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
    """The same by optax, whose lengths are masks of the padding."""
    frame_padding = (jnp.arange(logits.shape[1]) >= frames[:, None]).astype(jnp.float32)
    label_padding = (jnp.arange(labels.shape[1]) >= lengths[:, None]).astype(jnp.float32)
    return optax.ctc_loss(logits, frame_padding, labels, label_padding, blank_id=0)


def torchs(arrays: tuple[np.ndarray, ...], dtype: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The same by PyTorch: a function that computes losses and gradients."""
    import torch

    logits, frames, labels, lengths = arrays
    leaf = torch.tensor(logits, dtype=getattr(torch, dtype), requires_grad=True)
    rest = [torch.tensor(array.astype(np.int64)) for array in (labels, frames, lengths)]

    def run() -> tuple[np.ndarray, np.ndarray]:
        leaf.grad = None
        losses = torch.nn.functional.ctc_loss(leaf.log_softmax(-1).transpose(0, 1), *rest, reduction="none")
        losses.sum().backward()
        return losses.detach().numpy(), leaf.grad.numpy()

    return run


def compiled(function: Callable, arrays: list[jax.Array]) -> tuple[Callable, float, int]:
    """`() -> (losses, gradients)`, seconds of compiling, bytes of temporary memory."""

    def both(logits: jax.Array, *rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses, pull = jax.vjp(lambda x: function(x, *rest), logits)
        return losses, pull(jnp.ones_like(losses))[0]

    begun = time.perf_counter()
    program = jax.jit(both, compiler_options=compiler_options()).lower(*arrays).compile()
    seconds = time.perf_counter() - begun
    return lambda: jax.block_until_ready(program(*arrays)), seconds, program.memory_analysis().temp_size_in_bytes


def hostile_inputs_stay_finite(wanted: argparse.Namespace) -> bool:
    """Sure of the wrong, all blank, huge, tiny, too many labels: losses finite or infinite, gradients finite."""
    logits, frames, labels, lengths = draw(wanted)
    blank = logits.copy()
    blank[:, :, 0] += 1e3
    cases = {
        "times 1e4": (logits * 1e4, frames, labels, lengths),
        "times 1e30": (logits * np.float32(1e30), frames, labels, lengths),
        "all blank": (blank, frames, labels, lengths),
        "no differences": (logits * 0 + 3, frames, labels, lengths),
        "more labels than frames": (logits, np.minimum(frames, lengths - 1), labels, lengths),
        "no frames, no labels": (logits, frames * 0, labels, lengths * 0),
    }
    good = True
    for name, arrays in cases.items():
        losses, gradients = compiled(ours, [jnp.asarray(array) for array in arrays])[0]()
        finite = bool(np.isfinite(gradients).all()) and not np.isnan(losses).any()
        impossible = name == "more labels than frames"
        finite &= impossible or bool(np.isfinite(losses).all())
        print(f"{name}: {'finite' if finite else 'NOT FINITE'}, losses up to {np.max(losses):.4g}")
        good &= finite
    return good


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 16), ("frames", 1500), ("vocab", 64), ("labels", 300), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    arrays = draw(wanted)
    on_device = [jnp.asarray(array) for array in arrays]
    rows: dict[str, dict] = {}
    runs: dict[str, Callable] = {}
    for name, function in (("ours", ours), ("optax", optaxs)):
        runs[name], seconds, temporary = compiled(function, on_device)
        rows[name] = {"compile_s": seconds, "temp_bytes": temporary}
    try:
        runs["torch"] = torchs(arrays, "float32")
        rows["torch"] = {}
        expected, expected_gradients = torchs(arrays, "float64")()
    except ImportError:
        expected, expected_gradients = runs["optax"]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(wanted.repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            losses, gradients = run()
            if repeat:
                times[name].append(time.perf_counter() - begun)
            else:
                rows[name]["loss_difference"] = float(np.max(np.abs(losses - expected) / np.abs(expected)))
                rows[name]["gradient_difference"] = float(np.max(np.abs(gradients - expected_gradients)))
    for name, row in rows.items():
        row["step_s"], row["step_spread_s"] = median_and_spread(times[name])
    ratios = {f"ratio_{name}": rows[name]["step_s"] / rows["ours"]["step_s"] for name in rows if name != "ours"}
    ratios["memory_ratio_optax"] = rows["optax"]["temp_bytes"] / rows["ours"]["temp_bytes"]
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(f"batch {wanted.batch}, frames {wanted.frames}, vocabulary {wanted.vocab}, labels {wanted.labels}, float32")
    for name, row in rows.items():
        memory = f", temporary memory {row['temp_bytes'] / 2**20:.0f} MiB" if "temp_bytes" in row else ""
        print(
            f"{name}: {row['step_s'] * 1e3:.1f} ms +- {row['step_spread_s'] * 1e3:.1f}"
            + (f", compile {row['compile_s']:.1f} s" if "compile_s" in row else "")
            + f"{memory}; largest difference of a loss {row['loss_difference']:.1e} (relative), "
            f"of a gradient {row['gradient_difference']:.1e}"
        )
    if wanted.json:
        wanted.json.write_text(json.dumps(rows | ratios, indent=2) + "\n", encoding="utf-8")
    exact = max(rows["ours"]["loss_difference"], rows["ours"]["gradient_difference"]) <= TOLERANCE
    return 0 if hostile_inputs_stay_finite(wanted) and exact else 1


if __name__ == "__main__":
    sys.exit(main())
