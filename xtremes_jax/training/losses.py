"""Losses as (sum, weight) pairs, so that accumulation, filler rows and ragged last batches stay exact."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from xtremes_jax.batch import Batch
from xtremes_jax.training.contrastive import contrastive_loss_sum, margin_loss_sum, pair_weights, split_pairs

IMPOSSIBLE = -1e30
"""Log probability of what cannot happen: finite, so that sums and differences of it never give NaN."""


def ctc_loss(
    logits: Float[Array, "batch frames vocabulary"],
    logit_lengths: Int[Array, " batch"],
    labels: Int[Array, "batch labels"],
    label_lengths: Int[Array, " batch"],
    blank: int,
) -> Float[Array, " batch"]:
    """Negative log likelihood in nats of each row's labels under connectionist temporal classification.

    Follows Graves et al. 2006, section 4.1; agrees with `torch.nn.functional.ctc_loss(reduction="none")`. A row whose
    labels do not fit into its frames (frames < labels + equal neighbours) gets infinity and a gradient of zero. The
    probabilities of the labels' own symbols are gathered, so memory grows with frames x labels and not with a one-hot
    product over the vocabulary.

    Args:
        logits: unnormalised scores; computed with in float32 whatever their dtype.
        logit_lengths: valid frames of each row.
        labels: token ids, anything past the label length.
        label_lengths: valid labels of each row.
        blank: id of the blank token.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    states = _with_blanks(labels, blank)
    emissions = jnp.take_along_axis(log_probs, states[:, None, :], axis=2)
    can_skip = _can_skip(states, blank)
    return _alignment_loss(emissions, can_skip, logit_lengths, label_lengths)


def _with_blanks(labels: Int[Array, "batch labels"], blank: int) -> Int[Array, "batch states"]:
    """Blank, label, blank, label, ..., blank: the 2N + 1 states of an alignment."""
    batch, count = labels.shape
    states = jnp.full((batch, 2 * count + 1), blank, labels.dtype)
    return states.at[:, 1::2].set(labels)


def _can_skip(states: Int[Array, "batch states"], blank: int):
    """Whether a path may enter a state from two states before: past a blank, between two unequal labels."""
    before = jnp.pad(states, ((0, 0), (2, 0)), constant_values=blank)[:, :-2]
    return (states != blank) & (states != before)


def _shift(scores, by: int):
    """Scores of the state `by` places before (after, when negative), impossible beyond the ends."""
    if by > 0:
        return jnp.pad(scores, ((0, 0), (by, 0)), constant_values=IMPOSSIBLE)[:, :-by]
    return jnp.pad(scores, ((0, 0), (0, -by)), constant_values=IMPOSSIBLE)[:, -by:]


def _log_sum(*terms):
    """log(sum(exp(terms))) that stays finite when every term is impossible."""
    top = terms[0]
    for term in terms[1:]:
        top = jnp.maximum(top, term)
    return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


def _forward_and_backward(emissions, can_skip, frames, label_lengths):
    """Forward (with emission) and backward (without) log scores of every frame and state, from one scan.

    The backward recursion runs over the frames in reverse beside the forward one, so both finish after T steps.
    """
    batch, count, states = emissions.shape
    state = jnp.arange(states)[None, :]
    last = 2 * label_lengths[:, None]
    reachable = state <= last
    start = jnp.where((state <= 1) & reachable, 0.0, IMPOSSIBLE)
    finish = jnp.where((state == last) | ((state == last - 1) & (last > 0)), 0.0, IMPOSSIBLE)
    skip_into = can_skip & reachable
    skip_from = jnp.pad(skip_into, ((0, 0), (0, 2)))[:, 2:]

    def body(carry, frame):
        alpha, beta_next = carry
        emission = emissions[:, frame]
        moved = _log_sum(alpha, _shift(alpha, 1), jnp.where(skip_into, _shift(alpha, 2), IMPOSSIBLE))
        moved = jnp.where(frame == 0, start, moved) + emission
        alpha = jnp.where((frame < frames)[:, None] & reachable, moved, jnp.where(reachable, alpha, IMPOSSIBLE))

        mirrored = count - 1 - frame
        # beta_next holds backward score + emission of frame `mirrored + 1`.
        beta = _log_sum(beta_next, _shift(beta_next, -1), jnp.where(skip_from, _shift(beta_next, -2), IMPOSSIBLE))
        beta = jnp.where((mirrored == frames - 1)[:, None], finish, beta)
        beta = jnp.where(reachable & (mirrored < frames)[:, None], jnp.maximum(beta, IMPOSSIBLE), IMPOSSIBLE)
        return (alpha, jnp.maximum(beta + emissions[:, mirrored], IMPOSSIBLE)), (alpha, beta)

    nothing = jnp.full((batch, states), IMPOSSIBLE, emissions.dtype)
    (alpha, _), (alphas, betas) = jax.lax.scan(body, (nothing, nothing), jnp.arange(count))
    likelihood = jax.nn.logsumexp(alpha + finish, axis=1)
    return likelihood, alphas, betas[::-1]


@jax.custom_vjp
def _alignment_loss(emissions, can_skip, frames, label_lengths):
    return _alignment_forward(emissions, can_skip, frames, label_lengths)[0]


def _alignment_forward(emissions, can_skip, frames, label_lengths):
    likelihood, alphas, betas = _forward_and_backward(emissions, can_skip, frames, label_lengths)
    feasible = (likelihood > IMPOSSIBLE / 2) & (frames > 0)
    # Occupancy of each state at each frame: exactly minus the gradient of the loss by the emissions. At every frame it
    # sums to 1 over the states; taking the softmax instead of subtracting the likelihood keeps it so, and removes the
    # rounding that scores of hundreds of nats have gathered by then.
    occupancy = jnp.where(feasible[None, :, None], jax.nn.softmax(alphas + betas, axis=-1), 0.0)
    valid = jnp.arange(emissions.shape[1])[:, None] < frames[None, :]
    occupancy = jnp.where(valid[:, :, None], occupancy, 0.0)
    return jnp.where(feasible, -likelihood, jnp.inf), jnp.swapaxes(occupancy, 0, 1)


def _alignment_backward(occupancy, upstream):
    # Infinity times the zero occupancy of an impossible row would be NaN; its gradient is zero by definition.
    upstream = jnp.where(jnp.isfinite(upstream), upstream, 0.0)
    return -occupancy * upstream[:, None, None], None, None, None


_alignment_loss.defvjp(_alignment_forward, _alignment_backward)


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
        losses = jnp.where(jnp.isfinite(losses), losses, 0.0)
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
