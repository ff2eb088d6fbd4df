"""Times each part of a training step by itself on the device that is here: what to look at first.

    python scripts/benchmark_parts.py [--config xls_r_300m] [--rows 32] [--seconds 15] [--dtype bfloat16]

Forward pass, and forward pass with gradient, of front end, projection, positional convolution, one encoder layer, CTC
head with loss, and the optimizer, on random arrays (clips are SYNTHETIC noise). Prints the parts in order of what they
cost a whole step, with their share of the measured matmul rate, then the whole step beside their sum. `--trace DIR`
also writes a profile of the whole step that XProf and TensorBoard read.
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

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from benchmarks.contenders import best_rate, median_and_spread
from benchmarks.lowering import Setting
from benchmarks.parts import PARTS, make_part
from benchmarks.work import Work, forward_flops

from xtremes_jax.batch import SAMPLE_RATE

FLOPS_OF = {
    "front end": "front_end",
    "projection": "projection",
    "positional convolution": "positional",
    "encoder layer": "encoder",
    "CTC head and loss": "head",
}
"""Part -> its field of `Flops`."""


def random_arrays(shapes, seed: int = 0):
    """Arrays of these shapes: random, and lengths and labels in their ranges."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            values = 0.05 * rng.standard_normal(leaf.shape, dtype=np.float32)
        elif leaf.dtype == jnp.int16:
            values = rng.integers(-8000, 8000, leaf.shape)
        else:
            values = np.full(leaf.shape, 1)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(draw, shapes)


def seconds_of(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and half the interquartile range of calls that end when their result is there."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begun)
    return median_and_spread(times)


def time_part(name: str, setting: Setting, *, gradient: bool, repeats: int) -> tuple[float, float]:
    """Seconds of a whole step that go to this part."""
    part = make_part(name, setting, gradient=gradient, device=jax.devices()[0])
    arrays = list(random_arrays(part.arguments))
    if name == "encoder layer" or name == "CTC head and loss":
        frames = setting.model_config().num_frames(int(setting.seconds * SAMPLE_RATE))
        arrays[2] = jnp.full(arrays[2].shape, frames, jnp.int32)
    if name == "front end":
        arrays[2] = jnp.full(arrays[2].shape, int(setting.seconds * SAMPLE_RATE), jnp.int32)
    if name == "optimizer":
        arrays[1] = jax.tree.map(jnp.abs, arrays[1])  # second moments are not negative
    step = jax.jit(part.function)
    median, spread = seconds_of(lambda: step(*arrays), repeats)
    return median * part.times, spread * part.times


def matmul_rate(dtype: jnp.dtype) -> float:
    """FLOP/s of a large product on this device."""
    size = 8192 if jax.default_backend() != "cpu" else 3072
    a, b = (jnp.asarray(np.random.default_rng(i).standard_normal((size, size)), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    return best_rate(lambda: product(a, b).block_until_ready(), 2.0 * size**3)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="xls_r_300m")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--trace", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    setting = Setting(config=wanted.config, rows=wanted.rows, seconds=wanted.seconds, dtype=wanted.dtype)
    work = Work(wanted.config, batch=wanted.rows, seconds=wanted.seconds, dtype=wanted.dtype)
    flops = forward_flops(setting.model_config(), wanted.rows, int(wanted.seconds * SAMPLE_RATE))
    peak = matmul_rate(jnp.dtype(wanted.dtype))
    rows = []
    for name in PARTS:
        products = getattr(flops, FLOPS_OF[name]) if name in FLOPS_OF else 0.0
        for kind in ("forward", "with gradient") if name != "optimizer" else ("update",):
            median, spread = time_part(name, setting, gradient=kind == "with gradient", repeats=wanted.repeats)
            times = 3 if kind == "with gradient" else 1
            row = {"part": name, "kind": kind, "seconds": median, "spread": spread, "flops": products * times}
            rows.append(row | {"share_of_peak": products * times / median / peak})
            print(f"{name}, {kind}: {median * 1e3:.2f} ms a step", file=sys.stderr, flush=True)
    whole = time_whole_step(work, wanted.repeats, wanted.trace)
    show(rows, whole, peak, setting)
    if wanted.json:
        result = {"setting": vars(setting), "peak": peak, "parts": rows, "whole_step_s": whole[0]}
        wanted.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def time_whole_step(work: Work, repeats: int, trace: Path | None) -> tuple[float, float]:
    """The training step with the front end frozen: median and spread in seconds."""
    from benchmarks.ours import prepare

    ready = prepare(work)
    ready.run("train", 1)
    if trace is not None:
        with jax.profiler.trace(str(trace)):
            ready.run("train", 3)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        ready.run("train", 1)
        times.append(time.perf_counter() - begun)
    return median_and_spread(times)


def show(rows: list[dict], whole: tuple[float, float], peak: float, setting: Setting) -> None:
    """The table, dearest first; of the front end, which is frozen, the forward pass counts."""
    counted = {"optimizer": "update", "front end": "forward"}
    total = sum(row["seconds"] for row in rows if row["kind"] == counted.get(row["part"], "with gradient"))
    print(
        f"{setting.config}, {setting.rows} x {setting.seconds:g} s of SYNTHETIC audio, {setting.dtype}, jax "
        f"{jax.__version__} on {jax.devices()[0].device_kind}; measured matmul rate {peak / 1e12:.1f} TFLOP/s"
    )
    print(f"whole step, front end frozen: {whole[0] * 1e3:.1f} ms +- {whole[1] * 1e3:.1f}; parts: {total * 1e3:.1f} ms")
    for row in sorted(rows, key=lambda row: -row["seconds"]):
        share = f"{row['share_of_peak']:.0%} of peak" if row["flops"] else "no products"
        print(
            f"{row['part']:24} {row['kind']:14} {row['seconds'] * 1e3:9.2f} ms +- {row['spread'] * 1e3:.2f}  "
            f"{row['seconds'] / total:5.1%} of the sum  {share}"
        )


if __name__ == "__main__":
    sys.exit(main())
