"""What is said of the encoder's frames: a label of each (CTC), a class of the clip, or its embedding (retrieval)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xtremes_jax.models.layers import Linear
from xtremes_jax.models.masking import FINAL_DROPOUT, Randomness, dropout, fold, frame_mask


def ctc_logits(
    lm_head: Linear,
    hidden: Float[Array, "batch frames features"],
    *,
    dropout_rate: float,
    randomness: Randomness | None,
) -> Float[Array, "batch frames vocabulary"]:
    """Logits of every label in every frame, in float32 (Graves et al. 2006; `Wav2Vec2ForCTC`)."""
    hidden = dropout(hidden, dropout_rate, fold(randomness, FINAL_DROPOUT))
    return lm_head(hidden).astype(jnp.float32)


def classification_logits(
    projector: Linear,
    classifier: Linear,
    hidden: Float[Array, "batch frames features"],
    lengths: Int[Array, " batch"] | None,
) -> Float[Array, "batch labels"]:
    """Logits of every class, in float32: projection, mean over the valid frames, linear map.

    Follows `Wav2Vec2ForSequenceClassification`. A row without any valid frame pools to zeros.

    Args:
        projector, classifier: the two linear maps.
        hidden: the encoder's frames, or the weighted sum of its layers.
        lengths: valid frames of each row; None means all.
    """
    projected = projector(hidden).astype(jnp.float32)
    if lengths is None:
        pooled = jnp.mean(projected, axis=1)
    else:
        valid = frame_mask(lengths, hidden.shape[1])[:, :, None]
        total = jnp.sum(jnp.where(valid, projected, 0.0), axis=1)
        pooled = total / jnp.maximum(lengths, 1)[:, None].astype(jnp.float32)
    return classifier(pooled).astype(jnp.float32)


def unit_embeddings(
    projector: Linear,
    classifier: Linear,
    hidden: Float[Array, "batch frames features"],
    lengths: Int[Array, " batch"] | None,
) -> Float[Array, "batch embedding"]:
    """Embeddings of Euclidean length 1, in float32: `classification_logits`, divided by their norm.

    So they are what `Wav2Vec2ForSequenceClassification` gives with these weights, normalised. A row that the two maps
    send to 0 (a filler row under a bias of 0) stays 0, with a finite gradient.
    """
    pooled = classification_logits(projector, classifier, hidden, lengths)
    square = jnp.sum(jnp.square(pooled), axis=-1, keepdims=True)
    return pooled * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
