"""Randomness inside the step: per-row keys, dropout, and the spans of SpecAugment.

Every draw is made per row, from that row's own key, so that a clip meets the same noise whatever other clips are in its
batch, and whatever micro-batch or device it is in. More padding changes no draw either, with one exception: dropout of
attention probabilities draws over [frames, frames] for each head, so other padding gives other draws there, of the same
distribution. Each purpose folds its own fixed integer into the key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# One fixed integer for each purpose; changing one changes every seeded run.
FEATURE_PROJECTION_DROPOUT = 1
TIME_MASK = 2
FEATURE_MASK = 3
POSITION_DROPOUT = 4
LAYER = 5
FINAL_DROPOUT = 6
LAYER_ATTENTION = 7
LAYER_ATTENTION_OUTPUT = 8
LAYER_ACTIVATION = 9
LAYER_OUTPUT = 10
LAYER_SKIP = 11
LAYER_CONVOLUTION = 12
LAYER_FIRST_FEED_FORWARD = 13
ADAPTER = 14
BEFORE_ADAPTER = 15
DECODER = 20
EMBEDDING_DROPOUT = 21
CROSS_ATTENTION = 22
CROSS_ATTENTION_OUTPUT = 23


class Randomness(NamedTuple):
    """The keys of one training step. None in its place means evaluation: nothing is drawn."""

    rows: Key[Array, " batch"]
    """One key for each row, made from the step and the row's place in the global batch (or its sample id)."""
    shared: Key[Array, ""]
    """One key that all rows share; which layers to skip is drawn from it."""


def fold(randomness: Randomness | None, purpose: int | Int[Array, ""]) -> Randomness | None:
    """Folds `purpose` into every key; None stays None."""
    if randomness is None:
        return None
    rows = jax.vmap(jax.random.fold_in, in_axes=(0, None))(randomness.rows, purpose)
    return Randomness(rows=rows, shared=jax.random.fold_in(randomness.shared, purpose))


def dropout(
    x: Float[Array, " batch *dims"], rate: float, randomness: Randomness | None
) -> Float[Array, " batch *dims"]:
    """Sets each element to 0 with probability `rate` and scales the rest by `1 / (1 - rate)`.

    What is drawn for an element depends on its place in the row's flattened `dims`: a longer first axis (more padding)
    changes nothing, another length of a later axis does.

    Args:
        x: any activations, rows first.
        rate: in [0, 1); 0 leaves `x` as it is and draws nothing.
        randomness: keys already folded for this purpose, one for each row; None leaves `x` as it is.
    """
    if randomness is None or rate == 0.0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(randomness.rows)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))


def frame_mask(lengths: Int[Array, " batch"], num_frames: int) -> Bool[Array, "batch frames"]:
    """True where a frame lies before its row's length."""
    return jnp.arange(num_frames) < lengths[:, None]


def zero_unless(
    valid: Bool[Array, "batch frames 1"] | None, x: Float[Array, "batch frames features"]
) -> Float[Array, "batch frames features"]:
    """The same frames, with zeros for those that are not valid; None means that all are."""
    return x if valid is None else jnp.where(valid, x, jnp.zeros((), x.dtype))


def spec_augment_mask(
    randomness: Randomness,
    lengths: Int[Array, " batch"],
    size: int,
    *,
    mask_prob: float,
    mask_length: int,
    min_masks: int,
) -> Bool[Array, "batch size"]:
    """Which positions of an axis SpecAugment masks: spans of `mask_length`, starts drawn without replacement.

    Follows `_compute_mask_indices` of Transformers for each row as though it were alone in its batch and unpadded:
    `int(mask_prob * length / mask_length + epsilon)` spans, with epsilon uniform in [0, 1) drawn for each row; at least
    `min_masks`; at most as many as fit side by side, and as there are starts. A row shorter than a span has none
    (where the reference raises an error).

    Args:
        randomness: keys already folded for this purpose.
        lengths: valid positions of each row, at most `size`.
        size: length of the axis.
        mask_prob: share of the positions that the spans would cover if they did not overlap.
        mask_length: positions in a span.
        min_masks: fewest spans in a row.
    """

    def draw(key: Key[Array, ""], length: Int[Array, ""]) -> Bool[Array, " size"]:
        return _row_mask(key, length, size, mask_prob=mask_prob, mask_length=mask_length, min_masks=min_masks)

    return jax.vmap(draw)(randomness.rows, lengths)


def span_count(
    length: Int[Array, ""], epsilon: Float[Array, ""], *, mask_prob: float, mask_length: int, min_masks: int
) -> Int[Array, ""]:
    """Number of spans for a row of `length` positions: the reference's rule, with its probabilistic rounding."""
    count = jnp.floor(mask_prob * length / mask_length + epsilon).astype(length.dtype)
    count = jnp.maximum(count, min_masks)
    count = jnp.where(count * mask_length > length, length // mask_length, count)
    return jnp.minimum(count, jnp.maximum(length - (mask_length - 1), 0))


def _row_mask(
    key: Key[Array, ""], length: Int[Array, ""], size: int, *, mask_prob: float, mask_length: int, min_masks: int
) -> Bool[Array, " size"]:
    """The mask of one row: see `spec_augment_mask`."""
    most = min(max(int(mask_prob * size / mask_length + 1), min_masks), size // mask_length)
    if most == 0:
        return jnp.zeros((size,), bool)
    count_key, start_key = jax.random.split(key)
    count = span_count(
        length, jax.random.uniform(count_key), mask_prob=mask_prob, mask_length=mask_length, min_masks=min_masks
    )
    # The positions with the highest scores are a draw without replacement. Scores of a longer axis begin with those of
    # a shorter one, so the padding of a batch does not change the draw. (Not lax.top_k: XLA does not split it over the
    # devices' rows, but gathers them.)
    positions = jnp.arange(size)
    scores = jax.random.uniform(start_key, (size,))
    scores = jnp.where(positions <= length - mask_length, scores, -1.0)
    starts = jnp.argsort(-scores)[:most]
    inside = (positions >= starts[:, None]) & (positions < starts[:, None] + mask_length)
    return jnp.any(inside & (jnp.arange(most) < count)[:, None], axis=0)
