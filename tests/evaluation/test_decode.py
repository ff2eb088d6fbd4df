"""The text of decoded tokens against Transformers' own tokenizer, which decodes frame by frame."""

import itertools
import json
import string

import numpy as np
import pytest
from transformers import Wav2Vec2CTCTokenizer

from xtremes_jax.evaluation.decode import to_text


def make_tokenizer(folder, **options) -> Wav2Vec2CTCTokenizer:
    letters = string.ascii_uppercase if options.get("do_lower_case") else string.ascii_lowercase
    # The order of the reference script: characters sorted, then the unknown token, then padding.
    tokens = [*sorted(["'", ".", "é", "ß", "|", *letters[:6]]), "[UNK]", "[PAD]"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    return Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="|", **options
    )


def random_frames(rng, tokens: int, rows: int = 8, frames: int = 60):
    """Ids with runs, blanks and repeats: `[rows, frames]`, and ragged lengths from 0 to `frames`."""
    ids = np.repeat(rng.integers(0, tokens, (rows, frames)), 2, axis=1)[:, :frames]
    ids[rng.random(ids.shape) < 0.3] = tokens - 1
    lengths = rng.integers(0, frames + 1, rows)
    lengths[:2] = 0, frames
    return ids, lengths


def collapsed(ids, lengths, blank: int) -> list[list[int]]:
    """Repeats merged, and then blanks removed."""
    rows = zip(ids.tolist(), lengths.tolist(), strict=True)
    return [[token for token, _ in itertools.groupby(row[:length]) if token != blank] for row, length in rows]


@pytest.mark.parametrize("options", [{}, {"do_lower_case": True}, {"replace_word_delimiter_char": "_"}])
def test_text_equals_batch_decode_of_the_frames(rng, tmp_path, options):
    tokenizer = make_tokenizer(tmp_path, **options)
    ids, lengths = random_frames(rng, len(tokenizer.encoder), rows=40)
    expected = tokenizer.batch_decode([row[:length] for row, length in zip(ids, lengths, strict=True)])
    assert to_text(tokenizer, collapsed(ids, lengths, tokenizer.pad_token_id)) == expected


def test_text_of_labels_equals_batch_decode_without_grouping(rng, tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    labels = [rng.integers(0, len(tokenizer.encoder), length).tolist() for length in (0, 1, 30)]
    assert to_text(tokenizer, labels) == tokenizer.batch_decode(labels, group_tokens=False)


def test_unknown_and_sentence_tokens_stay_in_the_text_and_spaces_are_kept(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    token = tokenizer.convert_tokens_to_ids
    row = [token("|"), token("a"), token("[UNK]"), token("|"), token("|"), token("."), token("<s>"), token("|")]
    assert to_text(tokenizer, [row]) == ["a[UNK]  .<s>"] == tokenizer.batch_decode([row], group_tokens=False)


def test_ids_beyond_the_vocabulary_read_as_unknown(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    assert to_text(tokenizer, [[999]]) == ["[UNK]"] == tokenizer.batch_decode([[999]])
