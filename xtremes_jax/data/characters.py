"""The tokenizer of characters that a recognition run makes: Transformers' own, which is imported when it is saved."""

import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # it takes seconds to import, and loads torch where that is installed
    from transformers import BatchEncoding, Wav2Vec2CTCTokenizer


@dataclass(frozen=True)
class CharacterTokenizer:
    """What is asked of the reference's `Wav2Vec2CTCTokenizer` over a vocabulary while a run goes on.

    Its names are that tokenizer's, and so are its values, so that either may stand where the other does. It adds `<s>`
    and `</s>`, unless the vocabulary holds them.
    """

    encoder: dict[str, int]
    """Token -> id, from 0 on without gaps, as `build_vocabulary` gives it."""
    unk_token: str = "[UNK]"
    pad_token: str = "[PAD]"
    """Also CTC's blank."""
    word_delimiter_token: str = "|"
    target_lang: str | None = None
    """The language that a nested vocabulary, `{language: {token: id}}`, is to be saved with; None for a plain one."""

    bos_token: ClassVar[str] = "<s>"
    eos_token: ClassVar[str] = "</s>"
    do_lower_case: ClassVar[bool] = False
    replace_word_delimiter_char: ClassVar[str] = " "

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens beyond the vocabulary -> id."""
        added = [token for token in (self.bos_token, self.eos_token) if token not in self.encoder]
        return {token: len(self.encoder) + place for place, token in enumerate(added)}

    def get_vocab(self) -> dict[str, int]:
        """All tokens -> id."""
        return self.encoder | self.get_added_vocab()

    def __len__(self) -> int:
        return len(self.get_vocab())

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self.get_vocab()[self.pad_token]

    def __call__(self, text: str) -> "BatchEncoding":
        """Transformers' own encoding of a text."""
        return self.as_transformers(text)

    @cached_property
    def as_transformers(self) -> "Wav2Vec2CTCTokenizer":
        """The tokenizer itself, to be saved."""
        from transformers import Wav2Vec2CTCTokenizer

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vocab.json"
            content = self.encoder if self.target_lang is None else {self.target_lang: self.encoder}
            file.write_text(json.dumps(content), encoding="utf-8")
            return Wav2Vec2CTCTokenizer(
                str(file),
                unk_token=self.unk_token,
                pad_token=self.pad_token,
                word_delimiter_token=self.word_delimiter_token,
                target_lang=self.target_lang,
            )
