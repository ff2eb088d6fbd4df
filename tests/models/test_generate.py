"""Generation without PyTorch: limits by brute force, the cache, batches, filler rows, configuration files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.translation_models import config_of, many_clips, parameters

from xtremes_jax.errors import InputError
from xtremes_jax.models import GenerationConfig, abstract_model, generate, generate_from_hidden, merge, split_params
from xtremes_jax.models.generate import restrict

SEARCH = GenerationConfig(decoder_start_token_id=3, eos_token_id=2, pad_token_id=1, max_length=20)


@pytest.fixture(scope="module")
def prepared():
    """A model without adapter, its parameters, and six clips."""
    rng = np.random.default_rng(0)
    config = config_of("plain")
    params = parameters(config, rng, is_lively=True)
    return config, split_params(abstract_model(config))[0], params, *many_clips(rng, 6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 4, 9, 12])
def test_no_ngram_is_completed_twice(size, count, rng):
    tokens = rng.integers(0, 4, (2, 3, 12)).astype(np.int32)
    scores = rng.standard_normal((2, 3, 6)).astype(np.float32)
    config = dataclasses.replace(SEARCH, no_repeat_ngram_size=size)
    restricted = jax.jit(lambda count: restrict(jnp.asarray(scores), jnp.asarray(tokens), count, config))(count)
    for place in np.ndindex(2, 3):
        hypothesis = list(tokens[place][:count])
        held = {tuple(hypothesis[at : at + size]) for at in range(count - size + 1)}
        for token in range(6):
            is_held = count >= size and tuple([*hypothesis, token][count + 1 - size :]) in held
            assert restricted[place][token] == (-np.inf if is_held else scores[place][token])


def test_lengths_and_forced_tokens(rng):
    scores = rng.standard_normal((2, 6)).astype(np.float32)
    tokens = jnp.zeros((2, 9), jnp.int32)
    config = dataclasses.replace(SEARCH, max_length=9, min_length=4, forced_bos_token_id=5, forced_eos_token_id=2)
    for count in range(1, 9):
        found = np.asarray(restrict(jnp.asarray(scores), tokens, jnp.int32(count), config))
        expected = scores.copy()
        if count < 4:
            expected[:, 2] = -np.inf
        if count in (1, 8):
            expected[:] = -np.inf
            expected[:, 5 if count == 1 else 2] = 0
        np.testing.assert_array_equal(found, expected)


def test_the_cache_gives_the_logits_of_teacher_forcing(prepared, rng):
    config, graphdef, params, audio, lengths = prepared
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, (12, 9)).astype(np.int32))  # two beams for each clip

    def both(params):
        model = merge(graphdef, params)
        hidden, frames = model.encode(audio, lengths)
        whole = model.decode(tokens, jnp.repeat(hidden, 2, axis=0), jnp.repeat(frames, 2, axis=0))
        cache, logits = model.decoder.new_cache(hidden, 2, 11), []
        for place in range(tokens.shape[1]):
            one, cache = model.decoder.step(tokens[:, place], jnp.int32(place), cache, frames)
            logits.append(one)
        return whole, jnp.stack(logits, axis=1)

    whole, steps = jax.jit(both)(params)
    assert whole.dtype == steps.dtype == jnp.float32
    np.testing.assert_allclose(steps, whole, atol=2e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_translation_does_not_depend_on_its_batch(beams, prepared):
    _, graphdef, params, audio, lengths = prepared
    search = dataclasses.replace(SEARCH, num_beams=beams, early_stopping=True)
    translate = jax.jit(lambda params, audio, lengths: generate(merge(graphdef, params), audio, lengths, search))
    together = translate(params, audio, lengths)
    with_fillers = translate(params, np.where(np.arange(6)[:, None] % 2, audio, 0), lengths * (np.arange(6) % 2))
    assert translate._cache_size() == 1  # compiled once for all lengths
    for row in (1, 3, 5):
        np.testing.assert_array_equal(with_fillers.tokens[row], together.tokens[row])
    for row in (0, 2, 4):
        np.testing.assert_array_equal(with_fillers.tokens[row], [3] + [1] * 19)
        assert with_fillers.lengths[row] == 1 and not with_fillers.cut_off[row]
    longest = int(np.argmax(lengths))
    for row in {0, longest}:
        alone = translate(params, audio[row : row + 1, : lengths[row]], lengths[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        assert alone.lengths[0] == together.lengths[row] and alone.cut_off[0] == together.cut_off[row]
    assert len(set(together.lengths.tolist())) > 1


def test_beam_search_finds_what_is_likelier(prepared):
    _, graphdef, params, audio, lengths = prepared

    def log_probability(params, tokens, counts):
        model = merge(graphdef, params)
        log_probs = jax.nn.log_softmax(model.decode(tokens[:, :-1], *model.encode(audio, lengths)))
        each = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=2)[:, :, 0]
        return jnp.sum(each * (jnp.arange(19) < counts[:, None] - 1), axis=1)

    totals = []
    for beams in (1, 8):
        search = dataclasses.replace(SEARCH, num_beams=beams, length_penalty=0.0, early_stopping="never")
        found = jax.jit(lambda params, s=search: generate(merge(graphdef, params), audio, lengths, s))(params)
        totals.append(np.asarray(jax.jit(log_probability)(params, found.tokens, found.lengths)))
    assert (totals[1] >= totals[0] - 1e-4).all() and (totals[1] > totals[0] + 0.1).any()


def test_bfloat16_translates(prepared):
    config, _, params, audio, lengths = prepared
    graphdef, _ = split_params(abstract_model(config, dtype=jnp.bfloat16))
    search = dataclasses.replace(SEARCH, num_beams=2, no_repeat_ngram_size=2)
    found = jax.jit(lambda params: generate(merge(graphdef, params), audio, lengths, search))(params)
    assert (found.lengths > 1).all() and ((found.tokens >= 0) & (found.tokens < config.vocab_size)).all()


def test_too_long_a_limit_is_refused(prepared):
    config, graphdef, params, audio, lengths = prepared
    search = dataclasses.replace(SEARCH, max_length=41)
    with pytest.raises(InputError, match="max_length is 41.*40 positions"):
        hidden = jnp.zeros((2, 3, 16))
        generate_from_hidden(merge(graphdef, params), hidden, jnp.array([3, 3], jnp.int32), search)


def test_configuration_files_both_ways():
    model = config_of("plain")
    fields = {
        "_from_model_config": True,
        "bos_token_id": 0,
        "do_sample": False,
        "max_length": 25,
        "num_beams": 5,
        "early_stopping": "never",
        "length_penalty": 2,
        "no_repeat_ngram_size": 3,
        "forced_bos_token_id": [7],
        "forced_eos_token_id": 2,
        "repetition_penalty": 1.0,
        "temperature": 0.3,
        "bad_words_ids": None,
        "transformers_version": "4.30.0",
    }
    config = GenerationConfig.from_huggingface(fields, model)
    assert (config.max_length, config.num_beams, config.early_stopping, config.length_penalty) == (25, 5, "never", 2.0)
    assert (config.forced_bos_token_id, config.forced_eos_token_id, config.no_repeat_ngram_size) == (7, 2, 3)
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (3, 2, 1)  # the model's
    assert GenerationConfig.from_huggingface(json.loads(json.dumps(config.to_huggingface())), model) == config
    assert GenerationConfig.from_huggingface({}, model).max_length == 21
    counted = GenerationConfig.from_huggingface({"max_new_tokens": 9, "min_new_tokens": 2, "max_length": 30}, model)
    assert (counted.max_length, counted.min_length) == (10, 3)


def test_legacy_configuration_files():
    model = config_of("plain")
    fields = model.to_huggingface() | {"max_length": 30, "num_beams": 5, "length_penalty": None}
    fields["decoder"] = fields["decoder"] | {"num_beams": 2, "length_penalty": 0.5}
    config = GenerationConfig.from_model_config(fields, model)
    assert (config.max_length, config.num_beams, config.length_penalty) == (30, 5, 0.5)
    assert config.forced_eos_token_id == 2  # mBART's default
    assert config.decoder_start_token_id == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"do_sample": True}, "do_sample to True.*greedy and beam search"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"suppress_tokens": [5]}, "suppress_tokens"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"lang_to_id": {"en": 4}}, "lang_to_id.*not known"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": "4"}, "num_beams is '4'"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 41}, "max_length is 41.*40 positions"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"eos_token_id": [2, 5]}, "eos_token_id.*single"),
        ({"forced_bos_token_id": 31}, "forced_bos_token_id is 31.*31 tokens"),
    ],
)
def test_what_is_not_supported_is_named(fields, named):
    with pytest.raises(InputError, match=named):
        GenerationConfig.from_huggingface(fields, config_of("plain")).check_fits(config_of("plain"))
