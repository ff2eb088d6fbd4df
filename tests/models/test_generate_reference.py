"""Greedy and beam search beside `generate` of PyTorch Transformers, live, token for token.

Needs torch; where it is absent, test_translation_golden.py compares with translations that it made.
"""

import jax
import numpy as np
import pytest
from models.translation_models import config_of, many_clips, parameters, torch_inputs, torch_model

from xtremes_jax.models import GenerationConfig, abstract_model, generate, generate_from_hidden, merge, split_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SEARCHES = {
    "greedy": {},
    "greedy, n-grams, minimum": {"no_repeat_ngram_size": 2, "min_length": 9},
    "greedy, forced": {"forced_bos_token_id": 7, "forced_eos_token_id": 2, "max_length": 9},
    "beams": {"num_beams": 4},
    "no length penalty": {"num_beams": 4, "length_penalty": 0.0},
    "longer": {"num_beams": 4, "length_penalty": 2.0},
    "shorter": {"num_beams": 4, "length_penalty": -1.5},
    "stopping early": {"num_beams": 4, "early_stopping": True},
    "never stopping early": {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.6},
    "n-grams": {"num_beams": 4, "no_repeat_ngram_size": 2},
    "n-grams, longer": {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 1.7, "early_stopping": True},
    "minimum": {"num_beams": 4, "min_length": 12, "early_stopping": True},
    "forced": {"num_beams": 4, "forced_bos_token_id": 7, "forced_eos_token_id": 2, "max_length": 9},
    "words only once": {"num_beams": 3, "no_repeat_ngram_size": 1, "max_length": 16},
}


def generation(**fields) -> GenerationConfig:
    return GenerationConfig(
        **{"decoder_start_token_id": 3, "eos_token_id": 2, "pad_token_id": 1, "max_length": 24} | fields
    )


def theirs(model, inputs, search):
    """PyTorch's translations, padded to the length limit."""
    model.generation_config = transformers.GenerationConfig()  # else it fills in what is None here
    with torch.no_grad():
        tokens = model.generate(
            inputs.input_values,
            attention_mask=inputs.attention_mask,
            generation_config=transformers.GenerationConfig(**search.to_huggingface()),
        ).numpy()
    return np.pad(tokens, ((0, 0), (0, search.max_length - tokens.shape[1])), constant_values=search.pad_token_id)


@pytest.fixture(scope="module")
def prepared():
    """Both models with the same parameters, encoded clips, and PyTorch's inputs: without adapter they may be padded."""
    rng = np.random.default_rng(0)
    config = config_of("plain")
    params = parameters(config, rng, is_lively=True)
    audio, lengths = many_clips(rng)
    graphdef, _ = split_params(abstract_model(config))
    hidden = jax.jit(lambda params: merge(graphdef, params).encode(audio, lengths))(params)
    return graphdef, params, hidden, torch_model(config, params), torch_inputs(audio, lengths)


@pytest.mark.parametrize("name", SEARCHES)
def test_translations_are_those_of_transformers(name, prepared):
    graphdef, params, hidden, model, inputs = prepared
    search = generation(**SEARCHES[name])
    found = jax.jit(lambda params: generate_from_hidden(merge(graphdef, params), *hidden, search))(params)
    expected = theirs(model, inputs, search)
    np.testing.assert_array_equal(found.tokens, expected)
    ends = (expected[:, 1:] == search.eos_token_id).argmax(axis=1) + 2
    has_end = (expected[:, 1:] == search.eos_token_id).any(axis=1)
    np.testing.assert_array_equal(found.lengths, np.where(has_end, ends, search.max_length))
    if search.forced_eos_token_id is None:
        np.testing.assert_array_equal(found.cut_off, ~has_end)
    else:
        np.testing.assert_array_equal(found.cut_off, ends == search.max_length)
    # The comparison says something: translations differ, in length too, and hold different words.
    assert len({tuple(row) for row in expected}) >= 7
    assert len(set(found.lengths.tolist())) >= (3 if search.max_length == 24 else 1)
    assert np.mean([len(set(row[:length])) for row, length in zip(expected, found.lengths, strict=True)]) > 4


@pytest.mark.parametrize("beams", [1, 4])
def test_translations_through_an_adapter_and_a_pre_norm_encoder(beams):
    rng = np.random.default_rng(0)
    config = config_of("widening adapter")
    params = parameters(config, rng, is_lively=True)
    audio, lengths = many_clips(rng)
    search = generation(num_beams=beams)
    graphdef, _ = split_params(abstract_model(config))
    found = jax.jit(lambda params: generate(merge(graphdef, params), audio, lengths, search))(params)
    model = torch_model(config, params)
    # A clip at a time: in a batch, PyTorch's adapter would read the padding.
    expected = [theirs(model, torch_inputs(audio, lengths, [row]), search)[0] for row in range(len(lengths))]
    np.testing.assert_array_equal(found.tokens, np.stack(expected))
    assert len({tuple(row) for row in expected}) >= 8 and len(set(found.lengths.tolist())) >= 4
