"""Times the exact search of retrieval, measures its memory, and compares it with NumPy's brute force.

    python scripts/benchmark_search.py [--queries 10000] [--keys 10000] [--dim 64] [--k 10]

Vectors of small whole numbers, whose products are exact and often tie, must give the very indices of NumPy's stable
sort; unit vectors the same similarities to 1e-6, and the same indices wherever two neighbours differ by more than that.
Ends with status 1 where they do not.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xtremes_jax.evaluation.search import KEY_BLOCK, QUERY_BLOCK, top_k

TOLERANCE = 1e-6


def brute_force(queries: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities (float64) and indices of the k + 1 best keys, a few queries at a time."""
    similarities, indices = [], []
    keys = keys.astype(np.float64)
    for first in range(0, len(queries), 500):
        block = queries[first : first + 500].astype(np.float64) @ keys.T
        order = np.argsort(-block, axis=1, kind="stable")[:, : k + 1]
        indices.append(order)
        similarities.append(np.take_along_axis(block, order, axis=1))
    return np.concatenate(similarities), np.concatenate(indices)


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("queries", 10_000), ("keys", 10_000), ("dim", 64), ("k", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    rng = np.random.default_rng(0)
    good = True
    for kind in ("unit", "whole"):
        sides = [rng.standard_normal((count, wanted.dim)) for count in (wanted.queries, wanted.keys)]
        if kind == "unit":
            sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
        else:
            sides = [np.clip(np.rint(side), -2, 2) for side in sides]
        queries, keys = (side.astype(np.float32) for side in sides)
        top_k(queries[:8], keys[:8], wanted.k)  # XLA's threads and the like are not the search's
        before, begun = peak(), time.perf_counter()
        near = top_k(queries, keys, wanted.k)
        seconds, grown = time.perf_counter() - begun, peak() - before
        similarities, indices = brute_force(queries, keys, wanted.k)
        difference = np.abs(near.similarities - similarities[:, : wanted.k]).max()
        settled = np.diff(similarities, axis=1) < -TOLERANCE if kind == "unit" else np.ones_like(indices[:, 1:], bool)
        settled &= np.pad(settled[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        same = near.indices == indices[:, : wanted.k]
        agrees = bool(difference <= TOLERANCE and same[settled].all())
        good &= agrees
        whole = 4 * wanted.queries * wanted.keys / 2**20
        print(
            f"{kind} vectors, {wanted.queries} x {wanted.keys} x {wanted.dim}, k = {wanted.k}: {seconds:.2f} s with "
            f"compiling, {grown:.0f} MiB more (all similarities at once: {whole:.0f} MiB; a block of {QUERY_BLOCK} x "
            f"{KEY_BLOCK}: {QUERY_BLOCK * KEY_BLOCK / 2**18:.0f} MiB); largest difference {difference:.1e}, indices "
            f"equal in {same.mean():.4%}, of {settled.mean():.2%} that are not near ties in "
            f"{same[settled].mean():.4%}: {'agrees' if agrees else 'DIFFERS'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
