"""Text: the reference script's own steps as the oracle, and the tokenizer itself."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from xtremes_jax.data import text as module
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.text import (
    TARGET_END,
    build_vocabulary,
    clean,
    encode,
    encode_all,
    unlisted_ignored,
)
from xtremes_jax.errors import InputError

DEFAULT = tuple(', ? . ! - ; : " “ % ‘ ” �'.split())


def reference_vocabulary(splits, word_delimiter_token="|", unk_token="[UNK]", pad_token="[PAD]"):
    """The steps that the reference script describes, over its target texts (cleaned, with a space behind)."""
    characters = set()
    for texts in splits:
        characters |= set(" ".join(text + " " for text in texts))
    numbered = {character: number for number, character in enumerate(sorted(characters))}
    numbered[word_delimiter_token] = numbered[" "]
    del numbered[" "]
    numbered[unk_token] = len(numbered)
    numbered[pad_token] = len(numbered)
    return numbered


def test_clean_with_the_default_list():
    assert clean("¡Hola, SEÑORA! ¿Qué “tal”?", DEFAULT) == "¡hola señora ¿qué tal"
    # The joined list holds the range !-; and so takes digits and apostrophes, as the reference does.
    assert clean("Route 66 isn't (far) & 5% off; ok", DEFAULT) == "route  isnt far   off ok"
    assert set("0123456789'()&#$*+/") == set(unlisted_ignored(DEFAULT))


def test_clean_without_a_list_or_without_a_range():
    assert clean("Nr. 7, ÖFFNE!  ", None) == clean("Nr. 7, ÖFFNE!  ", ()) == "nr. 7, öffne!  "
    assert clean("isn't it 7?", ["?", ",", "-"]) == "isn't it 7"
    assert unlisted_ignored(["?", ",", "-"]) == unlisted_ignored(None) == ""


def test_clean_names_the_flag_of_a_bad_expression():
    with pytest.raises(InputError, match="--chars_to_ignore z - a: .*bad character range z-a"):
        clean("text", ["z", "-", "a"])


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]))), min_size=1))
def test_vocabulary_is_the_references(splits):
    cleaned = [[clean(text, DEFAULT) for text in texts] for texts in splits]
    assert build_vocabulary(t for texts in cleaned for t in texts) == reference_vocabulary([*cleaned, [""]])


def test_vocabulary_by_hand():
    got = build_vocabulary(["zażółć", "a b"])
    expected = ["|", "a", "b", "z", "ó", "ć", "ł", "ż", "[UNK]", "[PAD]"]
    assert got == {token: number for number, token in enumerate(expected)}
    assert list(got.values()) != sorted(got.values())  # the delimiter takes the place of the space
    assert build_vocabulary(["a|b"]) == build_vocabulary(["a b"])
    assert sorted(build_vocabulary(["~ | é"]).values()) == list(range(5))  # no id twice, none left out
    bare = build_vocabulary(["b a"], unk_token=None, pad_token=None, word_delimiter_token=None)
    assert bare == {" ": 0, "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("texts", "tokens", "message"),
    [
        (["a#b"], {"unk_token": "#"}, "--unk_token #: the transcripts hold this character"),
        (["a#b"], {"pad_token": "#"}, "--pad_token #: "),
        (["ab"], {"unk_token": "[X]", "pad_token": "[X]"}, r"--pad_token \[X\]: .*another token is spelled the same"),
        (["ab"], {"unk_token": "|"}, r"--unk_token \|: "),
    ],
)
def test_no_two_meanings_share_an_id(texts, tokens, message):
    with pytest.raises(InputError, match=message):
        build_vocabulary(texts, **tokens)


TOKENIZER = CharacterTokenizer(build_vocabulary(["abcé łžß", "日本"]))
PIECES = ["a", "b", "c", "é", " ", "  ", "|", "x", "日", "\n", "\U0001f600", "[UNK]", "<s>", "</s>", "[PAD]", "[", "İ"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES)).map("".join), max_size=6))
def test_encoding_is_the_tokenizers(texts):
    got, unknown = encode_all(TOKENIZER, texts)
    assert len(got) == len(texts)
    for text, labels in zip(texts, got, strict=True):
        assert labels.dtype == np.int32
        assert labels.tolist() == TOKENIZER(text).input_ids == encode(TOKENIZER, text).tolist()
    plain = [text for text in texts if not re.search(r"\[UNK\]|</?s>|\[PAD\]", text)]
    _, unknown = encode_all(TOKENIZER, plain)
    assert unknown.total() == sum(TOKENIZER(text).input_ids.count(TOKENIZER.get_vocab()["[UNK]"]) for text in plain)


@pytest.mark.parametrize("block", [1, 3, 7])
def test_encoding_in_blocks_changes_nothing(monkeypatch, block):
    texts = ["ab", "", "q łžq", "c<s>", "日本 ", "x", "éé"]
    whole, unknown = encode_all(TOKENIZER, texts)
    sizes = []
    monkeypatch.setattr(module, "_BLOCK_TEXTS", block)
    monkeypatch.setattr(
        module.np, "split", lambda labels, at, plain=np.split: sizes.append(len(at) + 1) or plain(labels, at)
    )
    parts, counted = encode_all(TOKENIZER, texts)
    assert [ids.tolist() for ids in parts] == [ids.tolist() for ids in whole] and counted == unknown
    assert max(sizes) == block and sum(sizes) == 7


def test_encoding_by_hand():
    vocabulary = build_vocabulary(["ab"])
    tokenizer = CharacterTokenizer(vocabulary)
    labels, unknown = encode_all(tokenizer, ["ab ba" + TARGET_END, "", "aqbqé" + TARGET_END])
    assert [ids.tolist() for ids in labels] == [[1, 2, 0, 2, 1, 0], [], [1, 3, 2, 3, 3, 0]]
    assert unknown == {"q": 2, "é": 1}
    assert encode_all(tokenizer, []) == ([], {})


def test_encoding_with_a_tokenizer_of_capitals(tmp_path):
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "S": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), do_lower_case=True)
    for text in ["as a ", "aß", "q", "as<unk>a"]:
        assert encode(tokenizer, text).tolist() == tokenizer(text).input_ids
