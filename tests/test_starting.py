"""What a translation run starts from: which tokens and limits its search gets, and from which file."""

import json
from pathlib import Path

import pytest

from xtremes_jax.arguments import ModelArguments
from xtremes_jax.corpus import longest_target
from xtremes_jax.data.subwords import learn_tokenizer
from xtremes_jax.errors import InputError
from xtremes_jax.models import DECODER_PRESETS, PRESETS
from xtremes_jax.starting import DecoderStart, StartingPoint, configure_translator, generation_config, starting_point

ENCODER = PRESETS["tiny"].to_huggingface()
DECODER = DECODER_PRESETS["tiny"].to_huggingface() | {"decoder_start_token_id": 2}
TOKENIZER = learn_tokenizer(["the cat sees the dog near the river"] * 3, vocab_size=40)


def joint(generation=None, decoder=(), **top) -> StartingPoint:
    """A checkpoint of both halves; `top` and `decoder` go into its config.json."""
    config = {"model_type": "speech-encoder-decoder", "encoder": ENCODER, "decoder": DECODER | dict(decoder), **top}
    here = Path("here")
    return StartingPoint("here", here, config, {}, DecoderStart("here", here, config["decoder"], generation))


def limits(start: StartingPoint, **flags) -> tuple[int, int]:
    found = generation_config(start, configure_translator(start, {}, {}), TOKENIZER, **flags)
    return found.max_length, found.num_beams


def test_lengths_and_beams_are_the_flags_or_the_checkpoints_or_128_and_greedy():
    assert limits(joint()) == (128, 1)
    assert limits(joint(max_length=200, num_beams=5)) == (200, 5)
    assert limits(joint(decoder={"max_length": 200})) == (200, 1)
    assert limits(joint(generation={"max_length": 50})) == (50, 1)
    assert limits(joint(generation={"max_length": None, "num_beams": 3})) == (128, 3)
    assert limits(joint(generation={"max_new_tokens": 30})) == (31, 1)
    assert limits(joint(max_length=200, num_beams=5), max_length=12, num_beams=2) == (12, 2)


def test_a_limit_beyond_the_positions_is_refused_unless_a_flag_gives_another():
    start = joint(generation={"max_new_tokens": 256})
    with pytest.raises(InputError, match="256 positions"):
        limits(start)
    assert limits(start, max_length=256) == (256, 1)


def test_a_joint_checkpoint_forces_the_first_token_that_it_names_and_no_other():
    start = joint(decoder_start_token_id=7)
    found = generation_config(start, configure_translator(start, {}, {}), TOKENIZER)
    assert (found.decoder_start_token_id, found.forced_bos_token_id) == (7, None)
    start = joint(generation={"forced_bos_token_id": 9})
    assert generation_config(start, configure_translator(start, {}, {}), TOKENIZER).forced_bos_token_id == 9
    assert joint(decoder_start_token_id=7).decoder_start_token_id == 7
    assert joint().decoder_start_token_id == 2


def test_labels_of_any_length_that_is_let_through_fit_into_the_positions():
    for positions, room in ((22, 16), (24, 24), (64, 64)):
        assert longest_target(joint(decoder={"max_position_embeddings": positions})) == room


def test_hostile_values_are_refused_in_a_sentence():
    with pytest.raises(InputError, match="early_stopping"):
        limits(joint(generation={"early_stopping": 1}))
    decoder = DecoderStart("here", Path("here"), DECODER | {"decoder": "x"}, None)
    start = StartingPoint("there", Path("there"), ENCODER, {}, decoder)
    assert limits(start) == (128, 1)


def test_a_decoder_where_none_belongs_and_none_where_one_does(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(joint().config))
    model = ModelArguments(model_name_or_path=str(tmp_path), decoder_config_name="tiny")
    with pytest.raises(InputError, match="brings a decoder of its own, so --decoder_config_name"):
        starting_point(model, translation=True)
    with pytest.raises(InputError, match="--task covost2"):
        starting_point(ModelArguments(model_name_or_path=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(joint().config | {"decoder": 3}))
    with pytest.raises(InputError, match='has no "decoder"'):
        starting_point(ModelArguments(model_name_or_path=str(tmp_path)), translation=True)
    (tmp_path / "config.json").write_text(json.dumps(ENCODER))
    with pytest.raises(InputError, match="encoder without a decoder"):
        starting_point(ModelArguments(model_name_or_path=str(tmp_path)), translation=True)
