"""The CTC loss with its exact gradient: two loops over half the frames each, in numbers that cannot underflow.

Forward and backward scores are products of thousands of probabilities. Logarithms keep them representable, but cost
exponentials for each addition and lose, in float32, three to four decimals of a score of a thousand nats. Here a score
is a float32 mantissa beside an integer exponent (`Scaled`): additions and products are a few cheap operations, and as
exact as float32's own.

Forward and backward recursion run side by side and meet in the middle: one loop runs each over its half of
the frames and keeps it, another goes on over the other halves and combines each frame with what was kept of it. That
takes as many dependent steps as one recursion alone, and half the memory of keeping both.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_IMPOSSIBLE = -(2**29)
"""Exponent of what cannot happen: finite, so that no sum or product of it needs a case of its own."""

_EXPONENT_BUDGET = 2**27
"""How far all frames together may lower an exponent: far less than would reach `_IMPOSSIBLE`."""

_BLOCK = 16
"""Frames between normalisations. A frame multiplies a mantissa by less than 6, so two of them stay below 2 ** 84."""


class Scaled(NamedTuple):
    """Positive numbers `mantissa x 2 ** exponent`; mantissas are at least 1, and below 2 once `_normalized`."""

    mantissa: Float[Array, "*dims"]
    exponent: Int[Array, "*dims"]


class States(NamedTuple):
    """Scores of an alignment's states: blank 0, label 1, blank 1, …, label N, blank N.

    In `[direction, batch, labels + 1]` each. Backward, blank n is held one place further on, and the last one in place
    0, so that both directions move alike.
    """

    blanks: Scaled
    labels: Scaled
    """Place 0 is no label and stays impossible."""


def _power_of_two(exponent: Int[Array, "*dims"]) -> Float[Array, "*dims"]:
    """2 ** exponent for exponents of at most 127; 0 below -126."""
    return jax.lax.bitcast_convert_type(jnp.maximum(exponent + 127, 0) << 23, jnp.float32)


def _add(a: Scaled, b: Scaled) -> Scaled:
    top = jnp.maximum(a.exponent, b.exponent)
    return Scaled(a.mantissa * _power_of_two(a.exponent - top) + b.mantissa * _power_of_two(b.exponent - top), top)


def _multiply(a: Scaled, b: Scaled) -> Scaled:
    return Scaled(a.mantissa * b.mantissa, jnp.maximum(a.exponent + b.exponent, _IMPOSSIBLE))


def _normalized(score: Scaled) -> Scaled:
    bits = jax.lax.bitcast_convert_type(score.mantissa, jnp.int32)
    shift = (bits >> 23) - 127
    return Scaled(jax.lax.bitcast_convert_type(bits - (shift << 23), jnp.float32), score.exponent + shift)


def _only(possible: Bool[Array, "*dims"], score: Scaled) -> Scaled:
    return Scaled(score.mantissa, jnp.where(possible, score.exponent, _IMPOSSIBLE))


def _next_place(values: Float[Array, "2 batch places"] | Int[Array, "2 batch places"]) -> Array:
    """Every value one place on in the forward direction, one back in the backward direction.

    What leaves at an end comes to place 0, where the emission is impossible, or is the backward direction's last blank.
    """
    return jnp.stack([jnp.roll(values[0], 1, axis=1), jnp.roll(values[1], -1, axis=1)])


def _get(values: Array, frame: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_index_in_dim(values, frame, axis=2, keepdims=False)


def _put(values: Array, new: Array, frame: Int[Array, ""]) -> Array:
    """`values` with `new` as one frame, known to be inside: without the test of an indexed update."""
    return jax.lax.dynamic_update_index_in_dim(values, new, frame, axis=2)


class _Recursion(NamedTuple):
    """Both recursions over a batch: direction 0 is forward, direction 1 backward."""

    logits: Float[Array, "batch frames vocabulary"]
    normalizer: Float[Array, "batch frames"]
    """Logarithm of the sum of the exponentials of each frame's logits."""
    frames: Int[Array, " batch"]
    labels: Int[Array, "2 batch places"]
    may_skip: Bool[Array, "2 batch places"]
    """Whether a path may go from a label to the next of its direction without a blank between: if the two differ."""
    start: States
    """Before the first frame: in the blank before the first label of the direction."""
    blank: int
    steps: int
    """Frames, rounded up to an even number of blocks."""

    def emissions(self, step: Int[Array, ""]) -> tuple[Scaled, Scaled]:
        """Probabilities of the blank `[2, batch, 1]` and of the labels `[2, batch, places]`, in frames of both ends."""
        last = self.logits.shape[1] - 1
        frames = jnp.minimum(step, last), jnp.minimum(self.steps - 1 - step, last)
        logits = jnp.stack([self.logits[:, frame] for frame in frames])
        normalizer = jnp.stack([self.normalizer[:, frame] for frame in frames])[:, :, None]
        of_labels = jnp.take_along_axis(logits, self.labels, axis=2, mode="clip")
        is_label = jnp.arange(self.labels.shape[2]) > 0
        blank = self._probability(logits[:, :, self.blank, None] - normalizer)
        return blank, _only(is_label, self._probability(of_labels - normalizer))

    def _probability(self, log_probability: Float[Array, "2 batch places"]) -> Scaled:
        bits = jnp.maximum(log_probability * 1.4426950408889634, -_EXPONENT_BUDGET / self.steps)
        whole = jnp.floor(bits)
        return _only(log_probability > -jnp.inf, Scaled(jnp.exp2(bits - whole), whole.astype(jnp.int32)))

    def move(self, states: States) -> States:
        """Scores before a frame's emission, from those of the frame before."""
        onward = _add(states.blanks, _only(self.may_skip, states.labels))
        onward = Scaled(_next_place(onward.mantissa), _next_place(onward.exponent))
        return States(_add(states.blanks, states.labels), _add(states.labels, onward))

    def step(self, states: States, step: Int[Array, ""]) -> tuple[States, States]:
        """Scores of the next frame, its emission included, and without it; past a row's end the former stay."""
        moved = self.move(states)
        of_blank, of_labels = self.emissions(step)
        after = States(_multiply(moved.blanks, of_blank), _multiply(moved.labels, of_labels))
        active = jnp.stack([step < self.frames, self.steps - 1 - step < self.frames])[:, :, None]
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), after, states), moved

    def run(self, body, carry, steps: Int[Array, " steps"]):
        """`body(carry, step) -> carry` for every step; `carry[0]` are scores, normalised after each block."""

        def block(carry, steps: Int[Array, " block"]):
            (states, *others), _ = jax.lax.scan(lambda carry, step: (body(carry, step), None), carry, steps)
            return (States(_normalized(states.blanks), _normalized(states.labels)), *others), None

        return jax.lax.scan(block, carry, steps.reshape(-1, _BLOCK))[0]

    def likelihood(self, states: States) -> Scaled:
        """`[batch]`, normalised: of all alignments together, from the scores in the middle."""
        forward = jax.tree.map(lambda values: values[0], states)
        backward = jax.tree.map(lambda values: values[1], self.move(states))
        blanks = Scaled(*(jnp.roll(values, -1, axis=1) for values in backward.blanks))
        parts = [_multiply(forward.blanks, blanks), _multiply(forward.labels, backward.labels)]
        exponent = jnp.concatenate([part.exponent for part in parts], axis=1)
        mantissa = jnp.concatenate([part.mantissa for part in parts], axis=1)
        top = jnp.max(exponent, axis=1)
        return _normalized(Scaled(jnp.sum(mantissa * _power_of_two(exponent - top[:, None]), axis=1), top))


def _recursion(logits: Array, frames: Array, labels: Array, label_lengths: Array, blank: int) -> _Recursion:
    logits = logits.astype(jnp.float32)
    labels = jnp.pad(labels, ((0, 0), (1, 0)))
    both = jnp.stack([labels, labels])
    places = jnp.arange(labels.shape[1])
    # Backward, blank N of N labels is in place N + 1, or in place 0 if there is no such place.
    last_blank = (label_lengths + 1) % len(places)
    first = jnp.stack([jnp.zeros_like(label_lengths), last_blank])
    one = jnp.ones(both.shape, jnp.float32)
    certain = jnp.where(places == first[:, :, None], 0, _IMPOSSIBLE).astype(jnp.int32)
    following = jnp.stack([jnp.roll(labels, -1, axis=1), jnp.roll(labels, 1, axis=1)])
    return _Recursion(
        logits=logits,
        normalizer=jax.nn.logsumexp(logits, axis=-1),
        frames=frames,
        labels=both,
        may_skip=both != following,
        start=States(Scaled(one, certain), Scaled(one, jnp.full(both.shape, _IMPOSSIBLE, jnp.int32))),
        blank=blank,
        steps=2 * _BLOCK * max(-(-logits.shape[1] // (2 * _BLOCK)), 1),
    )


def _loss_alone(logits: Array, frames: Array, labels: Array, label_lengths: Array, blank: int) -> Array:
    """Both recursions over their first half, nothing kept."""
    recursion = _recursion(logits, frames, labels, label_lengths, blank)
    steps = jnp.arange(recursion.steps // 2)
    (states,) = recursion.run(lambda carry, step: (recursion.step(*carry, step)[0],), (recursion.start,), steps)
    return _losses(recursion, recursion.likelihood(states))[0]


def _losses(recursion: _Recursion, likelihood: Scaled) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
    """Negative logarithm of the likelihood, infinite where no alignment exists; and whether one may."""
    feasible = likelihood.exponent > _IMPOSSIBLE // 2
    loss = -(jnp.log(likelihood.mantissa) + likelihood.exponent.astype(jnp.float32) * 0.6931471805599453)
    # Taken apart into mantissa and exponent, NaN would become a number.
    valid = jnp.arange(recursion.normalizer.shape[1]) < recursion.frames[:, None]
    broken = jnp.any(valid & ~jnp.isfinite(recursion.normalizer), axis=1)
    return jnp.where(broken, jnp.nan, jnp.where(feasible, loss, jnp.inf)), feasible | broken


def _loss_and_slope(
    logits: Array, frames: Array, labels: Array, label_lengths: Array, blank: int
) -> tuple[Float[Array, " batch"], Float[Array, "batch frames vocabulary"]]:
    """The losses, and their gradients by the logits: softmax minus the share of alignments that emit each token."""
    recursion = _recursion(logits, frames, labels, label_lengths, blank)
    (batch, count, vocabulary), half = logits.shape, recursion.steps // 2

    def keep(carry: tuple[States, Scaled], step: Int[Array, ""]) -> tuple[States, Scaled]:
        states, kept = carry
        states, moved = recursion.step(states, step)
        return states, Scaled(*(_put(old, new, step) for old, new in zip(kept, moved.labels, strict=True)))

    shape = (2, batch, half, labels.shape[1] + 1)
    nothing = Scaled(jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.int32))
    states, kept = recursion.run(keep, (recursion.start, nothing), jnp.arange(half))
    likelihood = recursion.likelihood(states)
    losses, feasible = _losses(recursion, likelihood)

    def combine(carry: tuple[States, Array], late: Int[Array, ""]) -> tuple[States, Array]:
        """Forward scores reach frame `late`, backward ones its mirror image `early`, at which the others were kept.

        The shares of all alignments that pass through each label take the place of the mantissas that were kept.
        """
        states, mantissas = carry
        states, _ = recursion.step(states, late)
        early = recursion.steps - 1 - late
        there = Scaled(*(values[::-1] for values in states.labels))
        exponent = jnp.minimum(_get(kept.exponent, early) + there.exponent - likelihood.exponent[:, None], 127)
        share = _get(mantissas, early) * there.mantissa / likelihood.mantissa[:, None] * _power_of_two(exponent)
        counts = jnp.stack([feasible & (early < frames), feasible & (late < frames)])
        share = jnp.where(counts[:, :, None], share, 0.0)
        return states, _put(mantissas, share, early)

    _, shares = recursion.run(combine, (states, kept.mantissa), jnp.arange(half, recursion.steps))
    spread = _label_spreader(labels, vocabulary, blank)
    tokens = jnp.concatenate([spread(shares[0]), spread(shares[1])[:, ::-1]], axis=1)[:, :count]
    counts = feasible[:, None] & (jnp.arange(count) < frames[:, None])
    probabilities = jnp.exp(recursion.logits - recursion.normalizer[:, :, None])
    return losses, jnp.where(counts[:, :, None], probabilities - tokens, 0.0)


def _label_spreader(labels: Int[Array, "batch labels"], vocabulary: int, blank: int):
    """`[batch, frames, places]` shares of labels to `[batch, frames, vocabulary]` of tokens; the rest is the blank's.

    Labels of the same token are added up by one product per row with a one-hot matrix. With a vocabulary larger than
    the labels, the columns of that matrix are the labels' first occurrences, from which each token then looks up its
    own: nothing grows with labels x vocabulary, and nothing large is scattered.
    """
    count = labels.shape[1]
    if vocabulary <= count:
        columns, width, place = labels, vocabulary, None
    else:
        nowhere = jnp.full((vocabulary,), count, jnp.int32)
        place = jax.vmap(lambda row: nowhere.at[row].min(jnp.arange(count), mode="drop"))(labels)
        columns, width = jnp.take_along_axis(place, labels, axis=1, mode="clip"), count
    one_hot = (columns[:, :, None] == jnp.arange(width)).astype(jnp.float32)
    one_hot = jnp.pad(one_hot, ((0, 0), (1, 0), (0, 1)))  # place 0 is no label; the last column looks up nothing

    def spread(shares: Float[Array, "batch frames places"]) -> Float[Array, "batch frames vocabulary"]:
        added = jnp.einsum("btn,bnc->btc", shares, one_hot, precision=jax.lax.Precision.HIGHEST)
        of_labels = added[:, :, :-1] if place is None else jnp.take_along_axis(added, place[:, None, :], 2, mode="clip")
        left = 1.0 - jnp.sum(added, axis=2, keepdims=True)
        return of_labels + jnp.where(jnp.arange(vocabulary) == blank, left, 0.0)

    return spread


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ctc(logits: Array, frames: Array, labels: Array, label_lengths: Array, blank: int) -> Array:
    return _loss_alone(logits, frames, labels, label_lengths, blank)


def _ctc_forward(logits: Array, frames: Array, labels: Array, label_lengths: Array, blank: int):
    losses, slope = _loss_and_slope(logits, frames, labels, label_lengths, blank)
    return losses, slope.astype(logits.dtype)


def _ctc_backward(blank: int, slope: Array, upstream: Array):
    # Infinity times the zero slope of an impossible row would be NaN; its gradient is zero by definition.
    upstream = jnp.where(jnp.isinf(upstream), 0.0, upstream)
    return (slope * upstream[:, None, None]).astype(slope.dtype), None, None, None


_ctc.defvjp(_ctc_forward, _ctc_backward)


def ctc_loss(
    logits: Float[Array, "batch frames vocabulary"],
    logit_lengths: Int[Array, " batch"],
    labels: Int[Array, "batch labels"],
    label_lengths: Int[Array, " batch"],
    blank: int,
) -> Float[Array, " batch"]:
    """Negative log likelihood in nats of each row's labels under connectionist temporal classification.

    Follows Graves et al. 2006, section 4.1; agrees with `torch.nn.functional.ctc_loss(reduction="none")`. A row whose
    labels do not fit into its frames (frames < labels + equal neighbours) gets infinity and a gradient of zero; one
    with logits that are not finite gets NaN. Memory grows with frames x labels, not with labels x vocabulary. A loss of
    more than 9e7 nats (2 ** 27 bits) is understated.

    Args:
        logits: unnormalised scores; computed with in float32 whatever their dtype.
        logit_lengths: valid frames of each row.
        labels: token ids, anything past the label length.
        label_lengths: valid labels of each row.
        blank: id of the blank token.
    """
    return _ctc(logits, logit_lengths, labels, label_lengths, blank)
