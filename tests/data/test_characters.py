"""The tokenizer of characters says what Transformers' own says, which is imported when it is asked for itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Wav2Vec2CTCTokenizer

from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.text import build_vocabulary
from xtremes_jax.evaluation.decode import to_text

ATTRIBUTES = "unk_token pad_token pad_token_id word_delimiter_token do_lower_case replace_word_delimiter_char encoder"


@pytest.mark.parametrize(
    "tokens",
    [
        {},
        {"unk_token": "<?>", "pad_token": "<p>", "word_delimiter_token": "_"},
        {"unk_token": "<unk>", "pad_token": "<pad>"},
        {"unk_token": "<s>", "pad_token": "</s>"},  # which it would add otherwise
    ],
)
def test_it_is_the_references(tmp_path, tokens):
    tokens = {"unk_token": "[UNK]", "pad_token": "[PAD]", **tokens}
    vocabulary = build_vocabulary(["grüße aus łódź", "日本 a"], **tokens)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    expected = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), **tokens)
    got = CharacterTokenizer(vocabulary, **tokens)
    assert got.get_vocab() == expected.get_vocab() == got.as_transformers.get_vocab() and len(got) == len(expected)
    for name in ATTRIBUTES.split():
        assert getattr(got, name) == getattr(expected, name), name
    for text in ("aus łódź", "q", f"a{got.unk_token}b", ""):
        assert got(text).input_ids == expected(text).input_ids
    ids = [[*range(len(got)), 0, 3, 1], [], [len(got) + 5, 2]]
    assert to_text(got, ids) == to_text(expected, ids)
    got.as_transformers.save_pretrained(tmp_path / "saved")
    saved = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.get_vocab() == got.get_vocab() and saved.pad_token_id == got.pad_token_id


def test_transformers_is_not_imported_to_encode_and_decode():
    code = """
import sys
from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.data.text import build_vocabulary, encode_all
from xtremes_jax.evaluation.decode import to_text
tokenizer = CharacterTokenizer(build_vocabulary(["ab c"]))
(labels,), _ = encode_all(tokenizer, ["a cab"])
assert to_text(tokenizer, [labels]) == ["a cab"] and len(tokenizer) == 8
sys.exit("transformers" in sys.modules or "torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent.parent)
