"""Losses as (sum, weight) pairs, so that accumulation, filler rows and ragged last batches stay exact."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from xtremes_jax.batch import Batch
from xtremes_jax.training.contrastive import contrastive_loss_sum, margin_loss_sum, pair_weights, split_pairs
from xtremes_jax.training.ctc import ctc_loss


def ctc_loss_sum(
    logits: Float[Array, "batch frames vocabulary"],
    logit_lengths: Int[Array, " batch"],
    labels: Int[Array, "batch labels"],
    label_lengths: Int[Array, " batch"],
    weight: Float[Array, " batch"],
    *,
    blank: int,
    reduction: str,
    zero_infinity: bool,
) -> Float[Array, ""]:
    """Sum over the rows of weight x CTC loss; divide by `loss_weight` for the batch's loss.

    As `torch.nn.functional.ctc_loss`: "mean" first divides each row's loss by its number of labels, "sum" does not;
    `zero_infinity` turns the infinite loss of a row that cannot be aligned into 0 instead of an infinite total.
    """
    losses = ctc_loss(logits, logit_lengths, labels, label_lengths, blank)
    if reduction == "mean":
        losses = losses / jnp.maximum(label_lengths, 1)
    if zero_infinity:
        losses = jnp.where(jnp.isposinf(losses), 0.0, losses)  # NaN is no matter of lengths
    return jnp.sum(jnp.where(weight > 0, losses * weight, 0.0))


def classification_loss_sum(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch 1"], weight: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Sum over the rows of weight x cross entropy in nats; divide by `loss_weight` for the batch's loss."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    losses = -jnp.take_along_axis(log_probs, labels, axis=1)[:, 0]
    return jnp.sum(jnp.where(weight > 0, losses * weight, 0.0))


def loss_weight(weight: Float[Array, " batch"], *, reduction: str) -> Float[Array, ""]:
    """What the sum of losses is divided by: the number of clips for "mean", 1 for "sum"."""
    return jnp.sum(weight) if reduction == "mean" else jnp.ones((), jnp.float32)


def translation_loss_sum(
    logits: Float[Array, "batch labels vocabulary"],
    labels: Int[Array, "batch labels"],
    label_lengths: Int[Array, " batch"],
    weight: Float[Array, " batch"],
    *,
    smoothing: float,
) -> Float[Array, ""]:
    """Sum over the labels of row weight x cross entropy in nats; divide by `translation_loss_weight`.

    With label smoothing as in `LabelSmoother` of Transformers' Trainer (Szegedy et al. 2016): a share `smoothing` of
    the target is spread over the whole vocabulary, the label itself included.

    Args:
        logits: of each label, given those before it; computed with in float32 whatever their dtype.
        labels: token ids, the end token among them; anything past the label length.
        label_lengths: valid labels of each row.
        weight: of each row; 0 leaves it out.
        smoothing: in [0, 1).
    """
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    losses = total - jnp.take_along_axis(logits, labels[:, :, None], axis=2, mode="clip")[:, :, 0]
    if smoothing:
        losses = (1.0 - smoothing) * losses + smoothing * (total - jnp.mean(logits, axis=-1))
    counts = (jnp.arange(labels.shape[1]) < label_lengths[:, None]) & (weight > 0)[:, None]
    return jnp.sum(jnp.where(counts, losses * weight[:, None], 0.0))


def translation_loss_weight(label_lengths: Int[Array, " batch"], weight: Float[Array, " batch"]) -> Float[Array, ""]:
    """What the sum of translation losses is divided by: the number of labels, as in Transformers' Trainer."""
    return jnp.sum(weight * label_lengths)


@dataclass(frozen=True)
class Objective:
    """Which loss a run minimises, and how its rows are weighed."""

    kind: Literal["ctc", "classification", "translation"]
    blank: int = 0
    """Token id of the CTC blank."""
    reduction: Literal["mean", "sum"] = "mean"
    """"mean": per label and then per clip; "sum": summed over the clips of the global batch. CTC alone."""
    zero_infinity: bool = False
    label_smoothing: float = 0.0
    """Share of each target's probability that is spread over the vocabulary. Translation alone."""

    def loss_sum(self, output, batch: Batch) -> Float[Array, ""]:
        """Weighted sum of the rows' losses, from a model's output."""
        if self.kind == "translation":
            return translation_loss_sum(
                output.logits, batch.labels, batch.label_lengths, batch.weight, smoothing=self.label_smoothing
            )
        if self.kind == "classification":
            return classification_loss_sum(output.logits, batch.labels, batch.weight)
        return ctc_loss_sum(
            output.logits,
            output.logit_lengths,
            batch.labels,
            batch.label_lengths,
            batch.weight,
            blank=self.blank,
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
        )

    def count(self, batch: Batch) -> Float[Array, ""]:
        """What a mean loss is the mean over: the clips, and in translation the tokens."""
        if self.kind == "translation":
            return translation_loss_weight(batch.label_lengths, batch.weight)
        return jnp.sum(batch.weight)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """What the sum is divided by; at least 1, so that a batch of nothing but filler rows has loss 0."""
        if self.kind == "translation":
            return jnp.maximum(self.count(batch), 1.0)
        return jnp.maximum(loss_weight(batch.weight, reduction=self.reduction), 1.0)


@dataclass(frozen=True)
class PairObjective:
    """Which loss a retrieval run minimises over the pairs of the global batch (see `training/contrastive.py`)."""

    loss: Literal["contrastive", "margin"] = "contrastive"
    margin: float = 0.2
    """Of the margin loss, in cosines."""
    negatives: int = 19
    """Of the margin loss, for each query."""

    def loss_sum(self, embeddings, logit_scale, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """Weighted sum of the pairs' losses; `key` is for the draw of negatives."""
        queries, keys = split_pairs(embeddings)
        weight = pair_weights(batch.weight)
        if self.loss == "contrastive":
            return contrastive_loss_sum(queries, keys, logit_scale, weight)
        return margin_loss_sum(queries, keys, weight, key, margin=self.margin, negatives=self.negatives)

    def weight(self, batch: Batch) -> Float[Array, ""]:
        """The number of pairs, at least 1."""
        return jnp.maximum(jnp.sum(pair_weights(batch.weight)), 1.0)
