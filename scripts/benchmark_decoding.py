"""Times CTC decoding on the device, best path and prefix beam search, beside loops on the host, and compares them.

    python scripts/benchmark_decoding.py [--batch 16] [--frames 1500] [--vocab 64] [--beams 8 32] [--host_rows 1]

The same random, ragged logits for all, on the device from the start; a decoding ends when its tokens are on the host.
The best path is timed beside argmax on the device and NumPy on the host, prefix beam search beside dictionaries of
prefixes in plain Python, which does `--host_rows` of the rows, its time scaled by their frames. Prints the ratios first
(above 1: the device is faster), then each one's time for a second of audio (50 frames) with half its interquartile
range, and compile time. Ends with status 1 where best paths differ, or log probabilities by more than 1e-4, relatively.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from benchmarks.contenders import median_and_spread

from xtremes_jax.models.ctc_decode import best_path, search_prefixes

TOLERANCE = 1e-4
FRAME_RATE = 50
BLANK = 0


def draw(wanted: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Random logits, two frames of three most likely blank, and ragged lengths, the first row's the longest."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((wanted.batch, wanted.frames, wanted.vocab)).astype(np.float32)
    logits[:, :, BLANK] += 12 * (rng.random(logits.shape[:2]) < 2 / 3)
    lengths = rng.integers(wanted.frames * 2 // 3, wanted.frames + 1, wanted.batch).astype(np.int32)
    lengths[0] = wanted.frames
    return logits, lengths


def compiled(function: Callable, *arrays: jax.Array) -> tuple[Callable[[], Any], float]:
    """A function that runs a program and fetches what it gives, and the seconds of compiling it."""
    begun = time.perf_counter()
    program = jax.jit(function).lower(*arrays).compile()
    seconds = time.perf_counter() - begun
    return lambda: jax.device_get(program(*arrays)), seconds


def collapse(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Repeats merged and blanks removed, all rows at once in NumPy."""
    keep = ids != BLANK
    keep[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    keep &= np.arange(ids.shape[1]) < lengths[:, None]
    tokens, ends = ids[keep].tolist(), np.cumsum(keep.sum(axis=1)).tolist()
    return [tokens[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def cut(tokens: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """The rows that count, as lists."""
    return [row[:count] for row, count in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def log_add(a: float, b: float) -> float:
    """Logarithm of the sum of two numbers that are given by their logarithms."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def search_in_dictionaries(scores: list[list[float]], beams: int) -> tuple[list[int], float]:
    """Prefix beam search of one row in plain Python; `scores` are `[frames][vocabulary]` log probabilities."""
    never = -math.inf
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}
    for frame in scores:
        new: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (of_blank, of_token) in kept.items():
            both, last = log_add(of_blank, of_token), prefix[-1] if prefix else BLANK
            blank, token = new.get(prefix, (never, never))
            repeated = of_token + frame[last] if prefix else never
            new[prefix] = log_add(blank, both + frame[BLANK]), log_add(token, repeated)
            for added, score in enumerate(frame):
                if added != BLANK:
                    longer = (*prefix, added)
                    blank, token = new.get(longer, (never, never))
                    new[longer] = blank, log_add(token, (of_blank if added == last else both) + score)
        kept = dict(sorted(new.items(), key=lambda item: -log_add(*item[1]))[:beams])
    best, parts = next(iter(kept.items()))
    return list(best), log_add(*parts)


def measure(run: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """Seconds of each repeat, after one that does not count, and what it gives."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begun)
    return times[1:], result


def time_best_path(rows: dict[str, dict], logits: jax.Array, lengths: jax.Array, repeats: int) -> bool:
    """Adds the rows of the best path; returns whether they agree."""
    program, compile_seconds = compiled(lambda logits, lengths: best_path(logits, lengths, BLANK), logits, lengths)
    ids, _ = compiled(lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.int32), logits)
    on_host = np.asarray(lengths)
    times, found = measure(lambda: cut(*program()), repeats)
    rows["best path, device"] = {"compile_s": compile_seconds, "times": times}
    times, expected = measure(lambda: collapse(ids(), on_host), repeats)
    rows["best path, host"] = {"times": times}
    return found == expected


def time_search(
    rows: dict[str, dict], logits: jax.Array, lengths: jax.Array, beams: int, wanted: argparse.Namespace
) -> float:
    """Adds the rows of a search with so many beams; returns the largest relative difference of a log probability."""
    program, compile_seconds = compiled(lambda a, b: search_prefixes(a, b, BLANK, beams), logits, lengths)

    def run() -> tuple[list[list[int]], np.ndarray]:
        transcripts, scores = program()
        return cut(*transcripts), scores

    times, (found, scores) = measure(run, wanted.repeats)
    rows[f"{beams} beams, device"] = {"compile_s": compile_seconds, "times": times}
    all_scores = np.asarray(jax.nn.log_softmax(logits), np.float64)
    counts = np.asarray(lengths)
    times, differences, same = [], [], 0
    for row in range(min(wanted.host_rows, wanted.batch)):
        frames = all_scores[row, : counts[row]].tolist()
        begun = time.perf_counter()
        tokens, score = search_in_dictionaries(frames, beams)
        times.append((time.perf_counter() - begun) / counts[row] * counts.sum())
        differences.append(abs(float(scores[row]) - score) / max(abs(score), 1.0))
        same += tokens == found[row]
    print(f"{beams} beams: {same} of {len(times)} transcripts are those of plain Python")
    rows[f"{beams} beams, host"] = {"times": times}
    return max(differences)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 16), ("frames", 1500), ("vocab", 64), ("repeats", 9), ("host_rows", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--beams", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--json", type=Path, metavar="FILE")
    wanted = parser.parse_args()
    logits, lengths = (jnp.asarray(array) for array in draw(wanted))
    audio_seconds = float(np.sum(np.asarray(lengths))) / FRAME_RATE
    rows: dict[str, dict] = {}
    agree = time_best_path(rows, logits, lengths, wanted.repeats)
    differences = {beams: time_search(rows, logits, lengths, beams, wanted) for beams in wanted.beams}
    for row in rows.values():
        row["seconds"], row["spread_s"] = median_and_spread(row.pop("times"))
        row["ms_per_audio_s"] = row["seconds"] / audio_seconds * 1e3
    kinds = ["best path", *(f"{beams} beams" for beams in wanted.beams)]
    ratios = {f"ratio, {kind}": rows[f"{kind}, host"]["seconds"] / rows[f"{kind}, device"]["seconds"] for kind in kinds}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(
        f"batch {wanted.batch}, frames {wanted.frames}, vocabulary {wanted.vocab}, {audio_seconds:.0f} s of audio, "
        f"{jax.devices()[0].device_kind}; random logits"
    )
    for name, row in rows.items():
        each, spread = row["ms_per_audio_s"], row["spread_s"] / audio_seconds * 1e3
        compiling = f", compile {row['compile_s']:.1f} s" if "compile_s" in row else ""
        print(f"{name}: {each:.4f} ms +- {spread:.4f} for a second of audio{compiling}")
    print(
        f"best paths {'agree' if agree else 'DIFFER'}; largest relative differences of log probabilities", differences
    )
    if wanted.json:
        record = rows | ratios | {"differences": differences, "audio_s": audio_seconds}
        wanted.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if agree and all(difference <= TOLERANCE for difference in differences.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
