"""Exact search among embeddings on the device, in blocks, so that memory stays bounded whatever the number of keys.

Ties go to the key with the lower index, as in a stable sort by descending similarity: results do not depend on the
sizes of the blocks. A block of similarities is `[2,048 queries, 4,096 keys]` float32, 32 MiB.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

QUERY_BLOCK = 2_048
KEY_BLOCK = 4_096
NOTHING = -1e30
"""Similarity of what is no key: finite, so that differences of it never give NaN."""


class Neighbours(NamedTuple):
    """The most similar keys of each query, best first."""

    similarities: Float32[np.ndarray, "queries k"]
    indices: Int32[np.ndarray, "queries k"]


def _similarities(
    queries: Float[Array, "queries embedding"], keys: Float[Array, "keys embedding"]
) -> Float[Array, "queries keys"]:
    return jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)


def _block_size(rows: int, largest: int) -> int:
    """Rows of a block: a power of two where one holds them all, so that few sizes are compiled."""
    return min(largest, 1 << max(0, rows - 1).bit_length())


def _blocks(
    array: Float32[np.ndarray, "rows embedding"], size: int
) -> Iterator[tuple[int, int, Float32[np.ndarray, "block embedding"]]]:
    """(first row, rows, block filled up with zeros to one size, so that one program serves all blocks)."""
    for first in range(0, len(array), size):
        block = array[first : first + size]
        yield first, len(block), np.pad(block, ((0, size - len(block)), (0, 0)))


@partial(jax.jit, static_argnames="k")
def _merge_top(best, queries, keys, first, count, k: int):
    """The k best of those so far (of lower indices) and of a block of keys, of which `count` rows are real."""
    similarities = _similarities(queries, keys)
    real = jnp.arange(keys.shape[0]) < count
    found, places = jax.lax.top_k(jnp.where(real[None, :], similarities, NOTHING), min(k, keys.shape[0]))
    # top_k gives ties to the first: the ones found before stand first, and have the lower indices.
    merged = jnp.concatenate([best[0], found], axis=1)
    indices = jnp.concatenate([best[1], places.astype(jnp.int32) + first], axis=1)
    similarities, places = jax.lax.top_k(merged, k)
    return similarities, jnp.take_along_axis(indices, places, axis=1)


def top_k(
    queries: Float32[np.ndarray, "queries embedding"],
    keys: Float32[np.ndarray, "keys embedding"],
    k: int,
    *,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> Neighbours:
    """The k keys with the greatest inner product with each query, exactly; all keys where there are fewer than k.

    Equal to NumPy's `argsort(-queries @ keys.T, kind="stable")[:, :k]`.

    Args:
        queries, keys: unit vectors, for cosines.
        k: at least 1.
        query_block, key_block: rows that are compared at a time: what memory depends on.
    """
    k = min(k, len(keys))
    query_block, key_block = _block_size(len(queries), query_block), _block_size(len(keys), key_block)
    similarities, indices = np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int32)
    for start, rows, block in _blocks(queries, query_block):
        block = jnp.asarray(block)
        best = (jnp.full((len(block), k), 2 * NOTHING, jnp.float32), jnp.zeros((len(block), k), jnp.int32))
        for first, count, some in _blocks(keys, key_block):
            best = _merge_top(best, block, some, first, count, k)
        similarities[start : start + rows], indices[start : start + rows] = (np.asarray(part)[:rows] for part in best)
    return Neighbours(similarities, indices)


class Found(NamedTuple):
    """How each query fares among all keys."""

    ranks: Int32[np.ndarray, " queries"]
    """Place of the first right key in the order of similarity, from 1."""
    losses: Float32[np.ndarray, " queries"]
    """Minus the logarithm of the softmax probability of the right keys together, in nats."""


@jax.jit
def _best_right(best, queries, keys, query_labels, key_labels, count, scale):
    """Greatest similarity of a right key, with log-sums of the right keys' and of all keys' exponentials so far."""
    similarity, of_right, of_all = best
    similarities = _similarities(queries, keys)
    real = (jnp.arange(keys.shape[0]) < count)[None, :]
    right = (query_labels[:, None] == key_labels[None, :]) & real
    logits = jnp.where(real, scale * similarities, NOTHING)
    return (
        jnp.maximum(similarity, jnp.max(jnp.where(right, similarities, NOTHING), axis=1)),
        jnp.logaddexp(of_right, jax.nn.logsumexp(jnp.where(right, logits, NOTHING), axis=1)),
        jnp.logaddexp(of_all, jax.nn.logsumexp(logits, axis=1)),
    )


@jax.jit
def _count_before(counts, similarity, queries, keys, query_labels, key_labels, count):
    """(wrong keys not less similar than the best right one, ties with it that precede it, whether it has come)."""
    before, ties, seen = counts
    similarities = _similarities(queries, keys)
    real = (jnp.arange(keys.shape[0]) < count)[None, :]
    right = (query_labels[:, None] == key_labels[None, :]) & real
    equal = real & (similarities == similarity[:, None])
    # The first right key that ties with the best: all ties to the left of it come before.
    is_best = right & equal
    place = jnp.where(jnp.any(is_best, axis=1), jnp.argmax(is_best, axis=1), keys.shape[0])
    left = jnp.arange(keys.shape[0])[None, :] < place[:, None]
    return (
        # Not "more similar": beside a similarity that is not a number a right key comes last, not first.
        before + jnp.sum(real & ~right & ~(similarities <= similarity[:, None]), axis=1),
        ties + jnp.where(seen, 0, jnp.sum(equal & left, axis=1)),
        seen | jnp.any(is_best, axis=1),
    )


def find(
    queries: Float32[np.ndarray, "queries embedding"],
    keys: Float32[np.ndarray, "keys embedding"],
    query_labels: Int[np.ndarray, " queries"],
    key_labels: Int[np.ndarray, " keys"],
    *,
    scale: float,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> Found:
    """Rank and loss of each query among all keys, exactly and in bounded memory: two passes over the blocks.

    Args:
        queries, keys: unit vectors.
        query_labels, key_labels: keys with the query's label are right; every query has one.
        scale: what similarities are multiplied with before the softmax of the loss.
    """
    ranks, losses = np.zeros(len(queries), np.int32), np.zeros(len(queries), np.float32)
    query_block, key_block = _block_size(len(queries), query_block), _block_size(len(keys), key_block)
    wide = np.pad(key_labels.astype(np.int32), (0, key_block))
    for start, rows, block in _blocks(queries, query_block):
        block = jnp.asarray(block)
        labels = np.pad(query_labels[start : start + rows].astype(np.int32), (0, len(block) - rows))
        nothing = jnp.full(len(block), NOTHING, jnp.float32)
        best = (nothing, nothing, nothing)
        for first, count, some in _blocks(keys, key_block):
            best = _best_right(best, block, some, labels, wide[first : first + key_block], count, scale)
        counts = (jnp.zeros(len(block), jnp.int32),) * 2 + (jnp.zeros(len(block), bool),)
        for first, count, some in _blocks(keys, key_block):
            counts = _count_before(counts, best[0], block, some, labels, wide[first : first + key_block], count)
        ranks[start : start + rows] = np.asarray(1 + counts[0] + counts[1])[:rows]
        losses[start : start + rows] = np.asarray(best[2] - best[1])[:rows]
    return Found(ranks, losses)


def margin_matches(
    queries: Float32[np.ndarray, "queries embedding"],
    keys: Float32[np.ndarray, "keys embedding"],
    *,
    k: int = 4,
    search: Callable[..., Neighbours] = top_k,
) -> Int32[np.ndarray, " queries"]:
    """The key that matches each query best by ratio margin (Artetxe and Schwenk 2019, arXiv:1811.01136, equation 3).

    Of a query's k nearest keys the one with the greatest cosine divided by a mean of cosines: that of the query with
    its k nearest keys, and that of the key with its k nearest queries, each counting half. So a key that is near to
    everything (a hub) does not win by that alone. A tie goes to the nearer key, then to the lower index. `xsim`, the
    error of these matches, is what multilingual sentence encoders are compared by (as in LASER, with k = 4).
    """
    near = search(queries, keys, k)
    around_queries = near.similarities.mean(axis=1, keepdims=True)
    around_keys = search(keys, queries, k).similarities.mean(axis=1)
    margins = near.similarities / ((around_queries + around_keys[near.indices]) / 2)
    return near.indices[np.arange(len(queries)), margins.argmax(axis=1)]


def hits(
    matches: Int32[np.ndarray, " queries"],
    query_labels: Int[np.ndarray, " queries"],
    key_labels: Int[np.ndarray, " keys"],
) -> Bool[np.ndarray, " queries"]:
    """Whether each query's match (index of a key) is of its own label."""
    return key_labels[matches] == query_labels
