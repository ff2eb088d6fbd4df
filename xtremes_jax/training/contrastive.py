"""Losses of retrieval: pairs of utterances of one sentence, told apart from the other pairs of the global batch.

A batch holds pairs in adjacent rows: row 2i is a query (another language), row 2i + 1 its key (English). A device has
whole pairs, but the losses compare every query with the keys of all devices: under `jax.jit` the product of the
sharded embeddings is that of the global batch. No sentence comes twice in a batch (`data/pairs.py`), so every other key
is a true negative.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from xtremes_jax.batch import Batch
from xtremes_jax.training.accumulation import accumulate, join_micro_batches, split_micro_batches

LARGEST_LOGIT_SCALE = 4.605170185988092
"""log(100): the temperature stays above 0.01, as in CLIP (Radford et al. 2021, section 2.5)."""

EXCLUDED = -1e30
"""Logit of what must not be chosen: finite, so that differences of it never give NaN."""


def split_pairs(
    embeddings: Float[Array, "rows embedding"],
) -> tuple[Float[Array, "pairs embedding"], Float[Array, "pairs embedding"]]:
    """Queries and keys of interleaved rows."""
    pairs = embeddings.reshape(embeddings.shape[0] // 2, 2, embeddings.shape[1])
    return pairs[:, 0], pairs[:, 1]


def pair_weights(weight: Float[Array, " rows"]) -> Float[Array, " pairs"]:
    """1 for a pair, 0 for one of which a clip is a filler row."""
    return jnp.prod(weight.reshape(-1, 2), axis=1)


def contrastive_loss_sum(
    queries: Float[Array, "pairs embedding"],
    keys: Float[Array, "pairs embedding"],
    logit_scale: Float[Array, ""],
    weight: Float[Array, " pairs"],
) -> Float[Array, ""]:
    """Sum over the pairs of the symmetric InfoNCE loss in nats; divide by the sum of the weights.

    The mean of two cross entropies: finding the key among all keys by the query, and the query among all queries by the
    key, with cosines times `exp(logit_scale)` as logits (van den Oord et al. 2018; CLIP, Radford et al. 2021).

    Args:
        queries, keys: of length 1, float32; row i of both is a pair.
        logit_scale: the learned logarithm of the inverse temperature.
        weight: 0 for pairs that are neither positive nor negative for anyone.
    """
    valid = weight > 0
    logits = jnp.exp(logit_scale) * jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
    right = jnp.diagonal(logits)
    by_query = jax.nn.logsumexp(jnp.where(valid[None, :], logits, EXCLUDED), axis=1) - right
    by_key = jax.nn.logsumexp(jnp.where(valid[:, None], logits, EXCLUDED), axis=0) - right
    return jnp.sum(jnp.where(valid, weight * (by_query + by_key) / 2, 0.0))


def sample_negatives(key: Key[Array, ""], valid: Bool[Array, " pairs"], count: int) -> Bool[Array, "pairs pairs"]:
    """For each query, up to `count` keys of other pairs, drawn without replacement: a mask `[query, key]`.

    The draw depends on the key and the shape of the global batch, not on how the batch lies on devices.
    """
    pairs = valid.shape[0]
    allowed = valid[None, :] & ~jnp.eye(pairs, dtype=bool)
    draws = jnp.where(allowed, jax.random.uniform(key, (pairs, pairs)), -1.0)
    _, chosen = jax.lax.top_k(draws, min(count, pairs))
    taken = jnp.zeros((pairs, pairs), bool).at[jnp.arange(pairs)[:, None], chosen].set(True)
    return taken & allowed


def margin_loss_sum(
    queries: Float[Array, "pairs embedding"],
    keys: Float[Array, "pairs embedding"],
    weight: Float[Array, " pairs"],
    key: Key[Array, ""],
    *,
    margin: float,
    negatives: int,
) -> Float[Array, ""]:
    """Sum over the pairs of the ranking loss with sampled negatives; divide by the sum of the weights.

    For a query, the mean over its negatives of `max(0, margin - cos(query, key) + cos(query, negative))`: the example
    of the XTREME-S data card, one positive and 19 negatives. Negatives are drawn from the other keys of the global
    batch (all of them where it has no more); a query without any has loss 0.

    Args:
        queries, keys, weight: as in `contrastive_loss_sum`.
        key: of this step's draw.
        margin: by how much the right cosine is to exceed a wrong one.
        negatives: drawn for each query, at most.
    """
    cosines = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
    taken = sample_negatives(key, weight > 0, negatives)
    excess = jax.nn.relu(margin - jnp.diagonal(cosines)[:, None] + cosines)
    mean = jnp.sum(jnp.where(taken, excess, 0.0), axis=1) / jnp.maximum(jnp.sum(taken, axis=1), 1)
    return jnp.sum(jnp.where(weight > 0, weight * mean, 0.0))


def pair_value_and_grad(
    embed: Callable[[Any, Any, Batch], tuple[Array, Array]],
    loss_sum: Callable,
    parameters: Any,
    others: Any,
    batch: Batch,
    count: int,
) -> tuple[Float[Array, ""], Any]:
    """Loss and gradient of a batch of pairs, the same for any number of micro-batches.

    With `count` micro-batches the clips are embedded twice, as in GradCache (Gao et al. 2021, arXiv:2101.06983): first
    without gradients, to have the loss of the whole batch and its gradient by each embedding; then micro-batch by
    micro-batch, to carry that on to the parameters. Activations of one micro-batch are held at a time, and every pair
    still has all other pairs as negatives.

    Args:
        embed: (parameters, others, micro-batch) -> (embeddings `[rows, embedding]`, logit scale): each row by itself.
        loss_sum: (embeddings `[batch, embedding]` in the batch's order, logit scale) -> scalar.
        parameters: what the gradient is by.
        others: what else `embed` needs.
        count: micro-batches; divides the rows of the batch.
    """
    if count == 1:
        return jax.value_and_grad(lambda p: loss_sum(*embed(p, others, batch)))(parameters)
    parts = split_micro_batches(batch, count)
    _, (embeddings, scales) = jax.lax.scan(lambda _, part: (None, embed(parameters, others, part)), None, parts)

    def loss_of(embeddings, scale):
        return loss_sum(join_micro_batches(embeddings), scale)

    loss, (by_embedding, by_scale) = jax.value_and_grad(loss_of, argnums=(0, 1))(embeddings, scales[0])

    def carry_on(shared, part_and_gradient):
        part, gradient = part_and_gradient
        _, pull = jax.vjp(lambda p: embed(p, shared[1], part)[0], shared[0])
        return pull(gradient)[0]

    by_rows = accumulate(carry_on, (parameters, others), (parts, by_embedding))
    # The scale is no sum over rows: it is the same in every micro-batch, and its share is added once.
    first = jax.tree.map(lambda array: array[0], parts)
    _, pull = jax.vjp(lambda p: embed(p, others, first)[1], parameters)
    return loss, jax.tree.map(jnp.add, by_rows, pull(by_scale)[0])
