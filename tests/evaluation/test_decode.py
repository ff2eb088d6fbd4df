"""Greedy decoding against Transformers' own tokenizer, frame by frame."""

import itertools
import json
import string

import numpy as np
import pytest
from transformers import Wav2Vec2CTCTokenizer

from xtremes_jax.evaluation.decode import collapse, to_text


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


def test_repeats_merge_before_blanks_go():
    ids = np.array([[1, 1, 0, 1, 2, 2], [0, 0, 3, 3, 3, 0], [5, 5, 5, 5, 5, 5]])
    assert collapse(ids, np.array([6, 6, 2]), blank=0) == [[1, 1, 2], [3], [5]]


def test_frames_past_the_length_do_not_count():
    assert collapse(np.array([[1, 2, 3], [1, 2, 3]]), np.array([0, 1]), blank=9) == [[], [1]]
    assert collapse(np.zeros((2, 0), np.int32), np.array([0, 0]), blank=9) == [[], []]


def test_collapse_leaves_its_input_alone(rng):
    ids, lengths = random_frames(rng, 5)
    before = ids.copy()
    collapse(ids, lengths, blank=4)
    np.testing.assert_array_equal(ids, before)


@pytest.mark.parametrize("blank", [0, 2, 4])
def test_collapse_equals_grouping_row_by_row(rng, blank):
    ids, lengths = random_frames(rng, 5, rows=30)
    expected = [
        [int(token) for token, _ in itertools.groupby(row[:length]) if token != blank]
        for row, length in zip(ids, lengths, strict=True)
    ]
    assert collapse(ids, lengths, blank) == expected


@pytest.mark.parametrize("options", [{}, {"do_lower_case": True}, {"replace_word_delimiter_char": "_"}])
def test_text_equals_batch_decode_of_the_frames(rng, tmp_path, options):
    tokenizer = make_tokenizer(tmp_path, **options)
    ids, lengths = random_frames(rng, len(tokenizer.encoder), rows=40)
    expected = tokenizer.batch_decode([row[:length] for row, length in zip(ids, lengths, strict=True)])
    assert to_text(tokenizer, collapse(ids, lengths, tokenizer.pad_token_id)) == expected


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
