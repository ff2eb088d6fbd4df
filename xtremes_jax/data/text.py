"""Transcripts -> labels, exactly as the reference script `run_xtreme_s.py` makes them.

Its three steps: `chars_to_ignore` are deleted and the rest is lower-cased; the vocabulary is every character of all
splits in use; a `Wav2Vec2CTCTokenizer` turns characters into ids. There each transcript also gets a space at its end,
so every label sequence ends with the word delimiter: `TARGET_END`.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xtremes_jax.data.characters import CharacterTokenizer
from xtremes_jax.errors import InputError

if TYPE_CHECKING:  # it takes seconds to import, and loads torch where that is installed
    from transformers import Wav2Vec2CTCTokenizer

_BLOCK_TEXTS = 20_000
"""Texts that are encoded at a time: spelled out as numbers they take some twenty bytes a character."""

TARGET_END = " "
"""What the reference script puts behind each cleaned transcript before it is tokenized."""


def clean(text: str, chars_to_ignore: Sequence[str] | None) -> str:
    """Deletes `chars_to_ignore` and lower-cases; spaces stay as they are.

    As in the reference, the characters are joined to one character class of a regular expression. With its default
    list the class contains the range `!-;`, which takes digits and the apostrophe along: see `unlisted_ignored`.

    Raises:
        InputError: The characters make no valid regular expression.
    """
    pattern = _pattern(chars_to_ignore)
    return (pattern.sub("", text) if pattern else text).lower()


def unlisted_ignored(chars_to_ignore: Sequence[str] | None) -> str:
    """ASCII characters that `clean` deletes although nobody listed them, because of a range such as `!-;`."""
    pattern, listed = _pattern(chars_to_ignore), "".join(chars_to_ignore or ())
    return "".join(c for c in string.printable if pattern and pattern.match(c) and c not in listed)


def _pattern(chars_to_ignore: Sequence[str] | None) -> re.Pattern[str] | None:
    if not chars_to_ignore:
        return None
    try:
        return re.compile(f"[{''.join(chars_to_ignore)}]")  # re keeps what it has compiled
    except re.error as error:
        raise InputError(
            f"--chars_to_ignore {' '.join(chars_to_ignore)}: put between [ and ], these characters are no regular "
            f"expression ({error}). Write \\ before ], ^ and \\, and put - last."
        ) from error


def build_vocabulary(
    texts: Iterable[str],
    *,
    unk_token: str | None = "[UNK]",
    pad_token: str | None = "[PAD]",
    word_delimiter_token: str | None = "|",
) -> dict[str, int]:
    """Character -> id: every character of the cleaned texts in sorted order, the space spelled as the word delimiter,
    then the unknown and the padding token (which is also CTC's blank).

    Pass the texts of all splits in use, as the reference does. One deviation: a text that itself holds the word
    delimiter counts as holding a space, where the reference would give two tokens one id.

    Raises:
        InputError: The unknown or the padding token is a character of the texts or another token: one id would have
            two meanings.
    """
    characters = {" "}.union(*map(set, texts))
    if word_delimiter_token is not None:
        characters.discard(word_delimiter_token)
    vocabulary = {character: number for number, character in enumerate(sorted(characters))}
    if word_delimiter_token is not None:
        vocabulary[word_delimiter_token] = vocabulary.pop(" ")
    for flag, token in (("--unk_token", unk_token), ("--pad_token", pad_token)):
        if token is None:
            continue
        if token in vocabulary:
            raise InputError(
                f"{flag} {token}: the transcripts hold this character, or another token is spelled the same, and one "
                "id cannot mean both. Choose another, such as [UNK], [PAD] and | for --word_delimiter_token."
            )
        vocabulary[token] = len(vocabulary)
    return vocabulary


def encode(tokenizer: "CharacterTokenizer | Wav2Vec2CTCTokenizer", text: str) -> np.ndarray:
    """`[labels]` int32: the tokenizer's own `input_ids` of a text; for many texts see `encode_all`."""
    return encode_all(tokenizer, [text])[0][0]


def encode_all(
    tokenizer: "CharacterTokenizer | Wav2Vec2CTCTokenizer", texts: Sequence[str]
) -> tuple[list[np.ndarray], Counter[str]]:
    """Token ids of many texts: what the tokenizer itself gives, some forty times as fast.

    Returns:
        One `[labels]` int32 array per text; and the characters that the vocabulary lacks, counted. Those are labelled
        with the unknown token, as in the reference.
    """
    tokens = tokenizer.get_vocab()
    # Tokens of several characters ("[UNK]", "<s>") are found in texts by a search that only the tokenizer itself does.
    longer = re.compile("|".join(re.escape(token) for token in tokens if len(token) > 1) or r"(?!)")
    codes = np.array(sorted(ord(token) for token in tokens if len(token) == 1), np.uint32)
    ids = np.array([tokens[chr(code)] for code in codes], np.int32)

    encoded: list[np.ndarray] = []
    unknown: Counter[str] = Counter()
    for first in range(0, len(texts), _BLOCK_TEXTS):
        block = texts[first : first + _BLOCK_TEXTS]
        cased = [text.upper() if tokenizer.do_lower_case else text for text in block]  # the name is Transformers' own
        spelled = [text.replace(" ", tokenizer.word_delimiter_token) for text in cased]
        found = np.frombuffer("".join(spelled).encode("utf-32-le", "surrogatepass"), np.uint32)
        place = np.minimum(np.searchsorted(codes, found), len(codes) - 1)
        known = codes[place] == found
        labels = np.where(known, ids[place], tokens[tokenizer.unk_token]).astype(np.int32)
        encoded += np.split(labels, np.cumsum([len(text) for text in spelled])[:-1])
        missing, counts = np.unique(found[~known], return_counts=True)
        unknown.update({chr(code): int(count) for code, count in zip(missing, counts, strict=True)})
    for number, text in enumerate(texts):
        if longer.search(text):
            encoded[number] = np.array(tokenizer(text).input_ids, np.int32)
    return encoded, unknown
