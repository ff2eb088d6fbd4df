"""Greedy and beam search on the device: one compiled loop over tokens, with a key/value cache of fixed size.

Token for token what `generate` of Transformers 5 gives. Every function here is pure and can be traced; wrap it as

    graphdef, params = split_params(model)
    translate = jax.jit(lambda params, audio, lengths: generate(merge(graphdef, params), audio, lengths, config))

so that it is compiled once for each shape of the audio, and never for a step or for a sentence's length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int16

from xtremes_jax.models.backbone import HostOrDevice
from xtremes_jax.models.decoder import Cache, KeyValue
from xtremes_jax.models.generation_config import GenerationConfig
from xtremes_jax.models.translation import TranslationModel

_UNLIKELY = -1.0e9
"""What Transformers adds to the score of a hypothesis that must not be chosen."""


class Generated(NamedTuple):
    """One translation of each clip."""

    tokens: Int[Array, "batch max_length"]
    """The start token, the translation with its end token, and padding."""
    lengths: Int[Array, " batch"]
    """Tokens of each row before the padding: with the start token, and with the end token where there is one."""
    cut_off: Bool[Array, " batch"]
    """Whether the translation ran into the length limit before it ended by itself."""


def generate(
    model: TranslationModel,
    audio: Int16[HostOrDevice, "batch samples"] | Float[HostOrDevice, "batch samples"],
    audio_lengths: Int[HostOrDevice, " batch"] | None,
    config: GenerationConfig,
) -> Generated:
    """Translates clips.

    Args:
        model: the model.
        audio: 16 kHz waveforms, int16 or floating point in [-1, 1].
        audio_lengths: valid samples of each row; None means all. Rows of length 0 get the start token alone.
        config: which search, and its limits.

    Raises:
        InputError: the configuration does not fit the model, or the audio is too short for a frame.
    """
    hidden, lengths = model.encode(audio, audio_lengths)
    return generate_from_hidden(model, hidden, lengths, config)


def generate_from_hidden(
    model: TranslationModel,
    hidden: Float[Array, "batch frames features"],
    lengths: Int[Array, " batch"],
    config: GenerationConfig,
) -> Generated:
    """Translates encoded speech, as `TranslationModel.encode` gives it; `lengths` is in frames."""
    config.check_fits(model.config)
    search = _greedy if config.num_beams == 1 else _beam_search
    tokens, found = search(model, hidden, lengths, config)
    last = jnp.take_along_axis(tokens, found[:, None] - 1, axis=1)[:, 0]
    ended = (last == config.eos_token_id) & (
        found < config.max_length if config.forced_eos_token_id is not None else True
    )
    return Generated(tokens, found, ~ended & (lengths > 0))


class _GreedyState(NamedTuple):
    count: Int[Array, ""]
    """Tokens so far, the start token among them."""
    tokens: Int[Array, "batch max_length"]
    lengths: Int[Array, " batch"]
    is_running: Bool[Array, " batch"]
    cache: Cache


def _greedy(
    model: TranslationModel, hidden: Array, lengths: Array, config: GenerationConfig
) -> tuple[Int[Array, "batch max_length"], Int[Array, " batch"]]:
    """Follows the likeliest token until every row has ended; returns tokens and their number."""
    batch = hidden.shape[0]

    def step(state: _GreedyState) -> _GreedyState:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, 1, keepdims=False)
        logits, cache = model.decoder.step(last, state.count - 1, state.cache, lengths)
        scores = restrict(logits, state.tokens, state.count, config)
        chosen = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        chosen = jnp.where(state.is_running, chosen, config.pad_token_id)
        tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, chosen, state.count, 1)
        return _GreedyState(
            count=state.count + 1,
            tokens=tokens,
            lengths=state.lengths + state.is_running,
            is_running=state.is_running & (chosen != config.eos_token_id),
            cache=cache,
        )

    state = _GreedyState(
        count=jnp.int32(1),
        tokens=_only_start((batch,), config),
        lengths=jnp.ones((batch,), jnp.int32),
        is_running=lengths > 0,
        cache=model.decoder.new_cache(hidden, 1, config.max_length),
    )
    state = jax.lax.while_loop(lambda state: (state.count < config.max_length) & jnp.any(state.is_running), step, state)
    return state.tokens, state.lengths


class _BeamState(NamedTuple):
    count: Int[Array, ""]
    """Tokens so far, the start token among them."""
    running: Int[Array, "batch beams max_length"]
    running_scores: Float[Array, "batch beams"]
    """Log probabilities, best first."""
    ended: Int[Array, "batch beams max_length"]
    ended_scores: Float[Array, "batch beams"]
    """With the length penalty, best first; `_UNLIKELY` where there is none yet."""
    ended_lengths: Int[Array, "batch beams"]
    is_ended: Bool[Array, "batch beams"]
    """Whether `ended` holds a hypothesis here."""
    can_improve: Bool[Array, " batch"]
    """Whether a running hypothesis might still become one of the best ended ones."""
    cache: Cache


def _beam_search(
    model: TranslationModel, hidden: Array, lengths: Array, config: GenerationConfig
) -> tuple[Int[Array, "batch max_length"], Int[Array, " batch"]]:
    """Follows the `num_beams` likeliest hypotheses; returns the best ended one of each row and its length."""
    batch, beams = hidden.shape[0], config.num_beams
    # In float64 and then rounded, as a Python number that divides a tensor is.
    penalties = jnp.asarray(np.arange(1.0, config.max_length + 1) ** config.length_penalty, jnp.float32)

    def goes_on(state: _BeamState) -> Array:
        is_open = state.can_improve
        if config.early_stopping is True:
            is_open = is_open & ~jnp.all(state.is_ended, axis=1)
        return (state.count < config.max_length) & jnp.any(is_open)

    def step(state: _BeamState) -> _BeamState:
        candidates = _extend(model, lengths, config, state)
        return _keep_best(state, candidates, penalties, config)

    none = jnp.full((batch, beams), _UNLIKELY, jnp.float32)
    start = _only_start((batch, beams), config)
    state = _BeamState(
        count=jnp.int32(1),
        running=start,
        running_scores=none.at[:, 0].set(0.0),  # all beams are one hypothesis at first
        ended=start,
        ended_scores=none,
        ended_lengths=jnp.ones((batch, beams), jnp.int32),
        is_ended=jnp.zeros((batch, beams), bool),
        can_improve=lengths > 0,
        cache=model.decoder.new_cache(hidden, beams, config.max_length),
    )
    state = jax.lax.while_loop(goes_on, step, state)
    return state.ended[:, 0], state.ended_lengths[:, 0]


class _Candidates(NamedTuple):
    """The likeliest continuations by one token, twice as many as beams, so that enough remain if half of them end."""

    scores: Float[Array, "batch candidates"]
    parents: Int[Array, "batch candidates"]
    """The beam that each continues."""
    tokens: Int[Array, "batch candidates max_length"]
    ends: Bool[Array, "batch candidates"]
    """Whether it is complete: by its end token, or at the length limit."""
    cache: Cache
    """Of the beams, with their last tokens in it."""


def _extend(model: TranslationModel, lengths: Array, config: GenerationConfig, state: _BeamState) -> _Candidates:
    """Runs the decoder on the last token of each beam and finds the likeliest continuations."""
    batch, beams, _ = state.running.shape
    last = jax.lax.dynamic_index_in_dim(state.running, state.count - 1, 2, keepdims=False)
    logits, cache = model.decoder.step(last.reshape(-1), state.count - 1, state.cache, lengths)
    scores = jax.nn.log_softmax(logits, axis=-1).reshape(batch, beams, -1)
    vocabulary = scores.shape[2]
    scores = restrict(scores, state.running, state.count, config) + state.running_scores[:, :, None]
    best, places = _highest(scores.reshape(batch, -1), 2 * beams)
    parents, chosen = places // vocabulary, places % vocabulary
    tokens = jnp.take_along_axis(state.running, parents[:, :, None], axis=1)
    tokens = jax.lax.dynamic_update_index_in_dim(tokens, chosen, state.count, 2)
    ends = (chosen == config.eos_token_id) | (state.count + 1 >= config.max_length)
    return _Candidates(best, parents, tokens, ends, cache)


def _keep_best(
    state: _BeamState, candidates: _Candidates, penalties: Float[Array, " max_length"], config: GenerationConfig
) -> _BeamState:
    """The state after one more token: the beams that run on, the best ended hypotheses, and whether to go on."""
    batch, beams, _ = state.running.shape
    running_scores, places = _highest(candidates.scores + _UNLIKELY * candidates.ends, beams)
    running = jnp.take_along_axis(candidates.tokens, places[:, :, None], axis=1)
    cache = _follow(candidates.cache, jnp.take_along_axis(candidates.parents, places, axis=1))

    # Only the likeliest `num_beams` candidates may end; the others are there to run on.
    ends = candidates.ends & (jnp.arange(2 * beams) < beams)
    generated = state.count  # without the start token, with the candidate's
    scores = candidates.scores / penalties[generated - 1]
    is_closed = ~state.can_improve
    if config.early_stopping is True:
        scores = scores + _UNLIKELY * jnp.all(state.is_ended, axis=1, keepdims=True)
    scores = scores + _UNLIKELY * is_closed[:, None] + _UNLIKELY * ~ends
    ended_scores, places = _highest(jnp.concatenate([state.ended_scores, scores], axis=1), beams)

    def pick(old: Array, new: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old, new], axis=1), places, axis=1)

    is_ended = pick(state.is_ended, ends)
    ended = jnp.concatenate([state.ended, candidates.tokens], axis=1)
    longest = config.max_length - 1 if config.early_stopping == "never" and config.length_penalty > 0 else generated
    hoped = running_scores[:, 0] / penalties[longest - 1]
    worst = jnp.where(jnp.all(is_ended, axis=1), ended_scores[:, -1], _UNLIKELY)
    return _BeamState(
        count=state.count + 1,
        running=running,
        running_scores=running_scores,
        ended=jnp.take_along_axis(ended, places[:, :, None], axis=1),
        ended_scores=ended_scores,
        ended_lengths=pick(state.ended_lengths, jnp.full((batch, 2 * beams), state.count + 1)),
        is_ended=is_ended,
        can_improve=state.can_improve & (hoped > worst),
        cache=cache,
    )


def _follow(cache: Cache, parents: Int[Array, "batch beams"]) -> Cache:
    """The cache of beams whose pasts are those of their `parents`."""
    batch, beams = parents.shape

    def pick(past: Array) -> Array:
        grouped = past.reshape(past.shape[0], batch, beams, *past.shape[2:])
        return jnp.take_along_axis(grouped, parents[None, :, :, None, None, None], axis=2).reshape(past.shape)

    return cache._replace(past=KeyValue(*map(pick, cache.past)))


def _highest(
    scores: Float[Array, "batch choices"], count: int
) -> tuple[Float[Array, "batch count"], Int[Array, "batch count"]]:
    """The `count` highest scores of each row and their places, highest first; of equals the first.

    A maximum at a time: XLA does not split `lax.top_k` over the devices' rows, but gathers them.
    """
    places = jnp.arange(scores.shape[1])

    def take(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        place = jnp.argmax(left, axis=1).astype(jnp.int32)
        score = jnp.max(left, axis=1)
        return jnp.where(places == place[:, None], -jnp.inf, left), (score, place)

    _, (found, where) = jax.lax.scan(take, scores, None, length=count)
    return found.T, where.T


def _only_start(shape: tuple[int, ...], config: GenerationConfig) -> Int[Array, "*shape max_length"]:
    """Hypotheses of nothing but the start token."""
    tokens = jnp.full((*shape, config.max_length), config.pad_token_id, jnp.int32)
    return tokens.at[..., 0].set(config.decoder_start_token_id)


def restrict(
    scores: Float[Array, "*rows vocabulary"],
    tokens: Int[Array, "*rows max_length"],
    count: Int[Array, ""],
    config: GenerationConfig,
) -> Float[Array, "*rows vocabulary"]:
    """Scores of the next token with those set to minus infinity that the configuration rules out.

    Follows, in this order, `NoRepeatNGramLogitsProcessor`, `MinLengthLogitsProcessor`, `ForcedBOSTokenLogitsProcessor`
    and `ForcedEOSTokenLogitsProcessor`.

    Args:
        scores: logits or log probabilities.
        tokens: the hypotheses so far; what is past `count` does not matter.
        count: their tokens, the start token among them.
        config: the limits.
    """
    vocabulary = jnp.arange(scores.shape[-1])
    if config.no_repeat_ngram_size:
        scores = jnp.where(_repeats(tokens, count, config.no_repeat_ngram_size, scores.shape[-1]), -jnp.inf, scores)
    if config.min_length:
        scores = jnp.where((vocabulary == config.eos_token_id) & (count < config.min_length), -jnp.inf, scores)
    for token, at in ((config.forced_bos_token_id, 1), (config.forced_eos_token_id, config.max_length - 1)):
        if token is not None:
            scores = jnp.where(count == at, jnp.where(vocabulary == token, 0.0, -jnp.inf), scores)
    return scores


def _repeats(
    tokens: Int[Array, "*rows max_length"], count: Int[Array, ""], size: int, vocabulary: int
) -> Bool[Array, "*rows vocabulary"]:
    """Which next tokens would complete an n-gram of `size` tokens that a hypothesis holds already."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    windows = flat.shape[1] - size + 1
    if windows < 1:
        return jnp.zeros((*tokens.shape[:-1], vocabulary), bool)
    matches = jnp.broadcast_to(jnp.arange(windows) + size <= count, (flat.shape[0], windows))
    for place in range(size - 1):
        suffix = jax.lax.dynamic_index_in_dim(flat, count + 1 - size + place, 1)
        matches = matches & (flat[:, place : place + windows] == suffix)

    def mark(match: Array, ends: Array) -> Array:
        return jnp.zeros((vocabulary,), bool).at[ends].max(match)

    return jax.vmap(mark)(matches, flat[:, size - 1 :]).reshape(*tokens.shape[:-1], vocabulary)
