"""CTC decoding on the device: best path and prefix beam search, all rows of a batch at once, no loop on the host.

The best path is the likeliest token of each frame, repeats merged and blanks removed (Graves et al. 2006, section 3.1).
Prefix beam search adds up all alignments of a prefix that stay within its beam (Graves et al. 2006, section 3.2; Hannun
et al. 2014, without a language model). Both treat every row by itself, so that rows may lie on different devices and
nothing is sent between them.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from xtremes_jax.models.partitioning import batch_axes

_NONE = -1
"""In the place of a token: none; the prefix is empty, or stays as it is."""


class Transcripts(NamedTuple):
    """One sequence of tokens for each row."""

    tokens: Int[Array, "batch frames"]
    """Token ids without blanks, and blanks behind them."""
    lengths: Int[Array, " batch"]
    """How many tokens of each row count."""


def decode_ctc(
    logits: Float[Array, "batch frames vocabulary"], lengths: Int[Array, " batch"], *, blank: int, beams: int = 1
) -> Transcripts:
    """The best path with one beam, else what prefix beam search finds.

    Args:
        logits: of any floating type.
        lengths: frames of each row that count.
        blank: id of the CTC blank.
        beams: prefixes that are followed at a time.

    Returns:
        No tokens for a row with a frame whose logits are NaN or all minus infinity.

    Raises:
        ValueError: fewer than 1 beam.
    """
    if beams < 1:
        raise ValueError(f"{beams} beams: there must be at least 1")
    if beams == 1:
        return best_path(logits, lengths, blank)
    return search_prefixes(logits, lengths, blank, beams)[0]


def best_path(
    logits: Float[Array, "batch frames vocabulary"], lengths: Int[Array, " batch"], blank: int
) -> Transcripts:
    """The likeliest token of each frame, repeats merged and then blanks removed; arguments as of `decode_ctc`."""
    tokens = likeliest_tokens(logits)
    before = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=_NONE)[:, :-1]
    valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
    broken = jnp.any(valid & (tokens == _NONE), axis=1, keepdims=True)
    return _compact(tokens, valid & ~broken & (tokens != blank) & (tokens != before), blank)


def likeliest_tokens(logits: Float[Array, "batch frames vocabulary"]) -> Int[Array, "batch frames"]:
    """The likeliest token of each frame; -1 of one whose logits are NaN or all minus infinity."""
    is_sound = jnp.max(logits, axis=-1) > -jnp.inf
    return jnp.where(is_sound, jnp.argmax(logits, axis=-1), _NONE).astype(jnp.int32)


def _compact(tokens: Int[Array, "batch frames"], keep: Bool[Array, "batch frames"], blank: int) -> Transcripts:
    """The tokens to keep, in their order, moved to the front."""
    count = tokens.shape[1]
    places = jnp.where(keep, jnp.cumsum(keep, axis=1, dtype=jnp.int32) - 1, count)
    empty = jnp.full((count,), blank, jnp.int32)
    moved = jax.vmap(lambda row, at: empty.at[at].set(row, mode="drop"))(tokens, places)
    return Transcripts(moved, jnp.sum(keep, axis=1, dtype=jnp.int32))


class _Beams(NamedTuple):
    """The prefixes that are followed, the likeliest first; those of log probability minus infinity do not exist.

    Log probabilities are relative to the likeliest prefix, so that float32 tells those near it apart after thousands
    of frames as well as after one.
    """

    total: Float[Array, "batch beams"]
    """Of all alignments of the prefix."""
    blank: Float[Array, "batch beams"]
    """Of its alignments that end in a blank."""
    token: Float[Array, "batch beams"]
    """Of those that end in its last token."""
    last: Int[Array, "batch beams"]
    """Its last token; `_NONE` where it is empty."""
    name: UInt32[Array, "2 batch beams"]
    """A hash of 64 bits of the prefix's tokens, which stands for the prefix (see `_lengthen`)."""
    parent: UInt32[Array, "2 batch beams"]
    """The name of the prefix without its last token."""


class _Frame(NamedTuple):
    """What a frame says of the next token, in log probabilities."""

    scores: Float[Array, "batch vocabulary"]
    best_scores: Float[Array, "batch ranks"]
    """Of the likeliest tokens other than the blank, highest first."""
    best_tokens: Int[Array, "batch ranks"]
    is_valid: Bool[Array, " batch"]
    """Whether the row reaches so far."""


class _Choices(NamedTuple):
    """What the prefixes after a frame are chosen from: each of before, and then their extensions by one token."""

    total: Float[Array, "batch choices"]
    blank: Float[Array, "batch choices"]
    token: Float[Array, "batch choices"]
    origin: Int[Array, "batch choices"]
    """The beam that each comes from."""
    added: Int[Array, "batch choices"]
    """The token that extends it; `_NONE` for a prefix that stays as it is."""


def search_prefixes(
    logits: Float[Array, "batch frames vocabulary"], lengths: Int[Array, " batch"], blank: int, beams: int
) -> tuple[Transcripts, Float[Array, " batch"]]:
    """CTC prefix beam search; arguments as of `decode_ctc`.

    Exactly the search that weighs all `beams x vocabulary` extensions in each frame, of equals preferring prefixes that
    stay, then those of likelier beams, then likelier tokens, then lower token ids.

    Returns:
        The likeliest prefix of each row in the end, and its log probability, of which a part is missing where an
        alignment has passed through a prefix that was dropped. A row with a frame that is NaN (or minus infinity
        throughout) has no tokens, and NaN for its log probability.
    """
    axes = tuple(batch_axes())
    devices = math.prod(batch_axes().values())
    search = functools.partial(_search, blank=blank, beams=beams)
    if devices > 1 and logits.shape[0] % devices == 0:
        # XLA does not split `lax.top_k` over the devices' rows, but gathers them.
        rows = PartitionSpec(axes)
        search = jax.shard_map(search, in_specs=rows, out_specs=rows, axis_names=set(axes), check_vma=False)
    return search(logits, lengths)


def _search(
    logits: Float[Array, "batch frames vocabulary"], lengths: Int[Array, " batch"], *, blank: int, beams: int
) -> tuple[Transcripts, Float[Array, " batch"]]:
    batch, frames, _ = logits.shape
    state, found = extend_prefixes(
        first_prefixes(batch, beams), logits, jnp.arange(frames) < lengths[:, None], blank=blank
    )
    tokens = _read_back(found.origins, found.added)
    score = jnp.where(found.is_broken, jnp.nan, state.total[:, 0] + found.shift)
    return _compact(tokens, (tokens != _NONE) & ~found.is_broken[:, None], blank), score


class Extended(NamedTuple):
    """What some frames have added to a search."""

    origins: Int[Array, "frames batch beams"]
    """The beam before each frame that each one after it comes from."""
    added: Int[Array, "frames batch beams"]
    """The token that it has added to it; -1 for none."""
    shift: Float[Array, " batch"]
    """What the beams' log probabilities have been lowered by."""
    is_broken: Bool[Array, " batch"]
    """Whether a row has had a frame whose logits are NaN or all minus infinity."""


def extend_prefixes(
    state: _Beams, logits: Float[Array, "batch frames vocabulary"], is_valid: Bool[Array, "batch frames"], *, blank: int
) -> tuple[_Beams, Extended]:
    """Goes on with a search from where it stands (`first_prefixes` at first); frames that are not valid are passed
    over. In how many parts the frames come changes nothing."""
    beams, vocabulary = state.last.shape[1], logits.shape[2]
    # Infinity, as half precision overflows to it, is certainty; the difference of two would be NaN.
    logits = jnp.minimum(logits.astype(jnp.float32), jnp.finfo(jnp.float32).max)
    scores = jax.nn.log_softmax(logits, axis=-1)
    # NaN has no place in an order: such rows are searched as impossible ones, and told apart in the end.
    is_broken = jnp.any(is_valid & jnp.any(jnp.isnan(scores), axis=2), axis=1)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    of_beams, of_ranks = _extensions(beams, vocabulary - 1)
    others = jnp.where(jnp.arange(vocabulary) == blank, -jnp.inf, scores)
    best_scores, best_tokens = jax.lax.top_k(others, min(vocabulary - 1, beams + 1))
    frames = _Frame(scores, best_scores, best_tokens, is_valid)

    def step(state: _Beams, frame: _Frame) -> tuple[_Beams, tuple[Array, Array, Array]]:
        choices = _weigh(state, frame, blank, of_beams, of_ranks)
        new, origin, added = _choose(state, choices)
        best = new.total[:, :1]
        shift = jnp.where(jnp.isfinite(best), best, 0.0)
        new = new._replace(total=new.total - shift, blank=new.blank - shift, token=new.token - shift)
        new = jax.tree.map(lambda a, b: jnp.where(frame.is_valid[:, None], a, b), new, state)
        origin = jnp.where(frame.is_valid[:, None], origin, jnp.arange(beams))
        added = jnp.where(frame.is_valid[:, None], added, _NONE)
        return new, (origin, added, jnp.where(frame.is_valid, shift[:, 0], 0.0))

    state, (origins, added, shifts) = jax.lax.scan(step, state, jax.tree.map(_frames_first, frames))
    return state, Extended(origins, added, jnp.sum(shifts, axis=0), is_broken)


def _frames_first(values: Array) -> Array:
    return jnp.swapaxes(values, 0, 1)


def _extensions(beams: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The extensions that can be among the `beams` best choices: the beams, and the ranks of the tokens by likelihood.

    Extending beam i by the token of rank r is no better, and of equals comes later, than extending any of the beams
    0 … i by any of the tokens 0 … r, unless that is the beam's own last token: a repeat is extended from the blank
    alone. Where such an extension is in the beam already, its sum there is better still. So at least
    (i + 1)(r + 1) - 1 - (i + 1) choices come before it, and once these are `beams`, it is not needed. That leaves about
    `beams` x log(`beams`) extensions of `beams` x `tokens`, and the likeliest `beams` + 1 tokens of a frame.
    """
    pairs = [(beam, rank) for beam in range(beams) for rank in range(tokens) if (beam + 1) * rank <= beams]
    beam, rank = np.array(pairs, np.int32).reshape(-1, 2).T
    return beam, rank


def first_prefixes(batch: int, beams: int) -> _Beams:
    """The empty prefix, with certainty and as if after a blank."""
    nothing = jnp.full((batch, beams), -jnp.inf, jnp.float32)
    certain = nothing.at[:, 0].set(0.0)
    last = jnp.full((batch, beams), _NONE, jnp.int32)
    name = jnp.zeros((2, batch, beams), jnp.uint32)
    return _Beams(certain, certain, nothing, last, name, name + jnp.uint32(0x9E3779B9))


def _weigh(beams: _Beams, frame: _Frame, blank: int, of_beams: np.ndarray, of_ranks: np.ndarray) -> _Choices:
    """The log probabilities of all choices, the same prefix on two ways taken together."""
    alive = beams.total > -jnp.inf
    same = jnp.all(beams.name[:, :, :, None] == beams.parent[:, :, None, :], axis=0)
    is_parent = same & alive[:, :, None] & alive[:, None, :]  # [batch, parent, child]
    repeats = beams.last[:, :, None] == beams.last[:, None, :]
    ready = jnp.where(repeats, beams.blank[:, :, None], beams.total[:, :, None])
    joining = jnp.max(jnp.where(is_parent, ready, -jnp.inf), axis=1)
    of_last = jnp.take_along_axis(frame.scores, jnp.maximum(beams.last, 0), axis=1)
    of_last = jnp.where(beams.last == _NONE, -jnp.inf, of_last)
    stay_blank = beams.total + frame.scores[:, blank, None]
    stay_token = jnp.logaddexp(beams.token, joining) + of_last

    added = frame.best_tokens[:, of_ranks]
    ready = jnp.where(added == beams.last[:, of_beams], beams.blank[:, of_beams], beams.total[:, of_beams])
    grown = ready + frame.best_scores[:, of_ranks]
    is_there = jnp.any(is_parent[:, of_beams] & (added[:, :, None] == beams.last[:, None, :]), axis=2)
    grown = jnp.where(is_there, -jnp.inf, grown)

    batch, count = beams.last.shape
    origin = jnp.concatenate([jnp.arange(count, dtype=jnp.int32), of_beams])
    return _Choices(
        total=jnp.concatenate([jnp.logaddexp(stay_blank, stay_token), grown], axis=1),
        blank=jnp.concatenate([stay_blank, jnp.full_like(grown, -jnp.inf)], axis=1),
        token=jnp.concatenate([stay_token, grown], axis=1),
        origin=jnp.broadcast_to(origin, (batch, len(origin))),
        added=jnp.concatenate([jnp.full_like(beams.last, _NONE), added], axis=1),
    )


def _choose(beams: _Beams, choices: _Choices) -> tuple[_Beams, Int[Array, "batch beams"], Int[Array, "batch beams"]]:
    """The likeliest choices as beams, the beams that they come from, and the tokens that they add."""
    total, places = jax.lax.top_k(choices.total, beams.last.shape[1])
    _, blank, token, origin, added = (jnp.take_along_axis(values, places, axis=1) for values in choices)
    name, parent = (jnp.take_along_axis(names, origin[None], axis=2) for names in (beams.name, beams.parent))
    stays = added == _NONE
    last = jnp.where(stays, jnp.take_along_axis(beams.last, origin, axis=1), added)
    longer = _lengthen(name, added)
    return (
        _Beams(total, blank, token, last, jnp.where(stays, name, longer), jnp.where(stays, parent, name)),
        origin,
        added,
    )


def _lengthen(name: UInt32[Array, "2 batch beams"], token: Int[Array, "batch beams"]) -> UInt32[Array, "2 batch beams"]:
    """The name of a prefix with one more token: two hashes of 32 bits, mixed as MurmurHash3 does in its end.

    A prefix may leave the beam and come back by another way while a longer one that begins with it stays; a name made
    of nothing but the tokens is then the same as before, which a number given to each new prefix would not be. Two
    prefixes share a name with a probability of 2 ** -64: of 1,500 frames in which 32 beams are compared with each
    other, one in 10 ** 13 meets such a pair.
    """
    factors = jnp.array([[[0xCC9E2D51]], [[0x1B873593]]], jnp.uint32)
    shifts = jnp.array([[[0x85EBCA77]], [[0xC2B2AE3D]]], jnp.uint32)
    bits = (name ^ (token.astype(jnp.uint32) * factors + shifts)) * jnp.uint32(0x9E3779B1)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _read_back(
    origins: Int[Array, "frames batch beams"], added: Int[Array, "frames batch beams"]
) -> Int[Array, "batch frames"]:
    """The token that each frame added to the prefix that is first in the end, or `_NONE`."""

    def back(beam: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        origin, token = (jnp.take_along_axis(values, beam[:, None], axis=1)[:, 0] for values in frame)
        return origin, token

    last = jnp.zeros(origins.shape[1:2], jnp.int32)
    return _frames_first(jax.lax.scan(back, last, (origins, added), reverse=True)[1])
