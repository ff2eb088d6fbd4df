"""A vocabulary of many languages, `{language: {token: id}}` in vocab.json, as MMS has it: one language's part of it."""

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xtremes_jax.errors import InputError
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.weights import read_json_object

VOCABULARY = "vocab.json"
_CONFIG = "tokenizer_config.json"
_OF_ANOTHER_LANGUAGE = "added_tokens_decoder"
"""Key of tokenizer_config.json: ids of tokens in the language that the file was saved in."""
_SHOWN = 12
_LONGEST = 100
"""Of a language's name that is shown as it is: as long as `languages.check_name` takes."""


def nested_languages(directory: Path) -> list[str]:
    """The languages of the vocabulary in a directory; none where it is not nested, or absent."""
    path = Path(directory) / VOCABULARY
    vocabulary = read_json_object(path) if path.is_file() else {}
    return list(vocabulary) if all(isinstance(part, dict) for part in vocabulary.values()) else []


def listed(languages: list[str]) -> str:
    """Languages for a message: the first of them, and how many more."""
    more = len(languages) - _SHOWN
    # A file that somebody made may hold any text for a name.
    names = (name if name.isprintable() and len(name) <= _LONGEST else shown(name) for name in sorted(languages))
    return ", ".join(itertools.islice(names, _SHOWN)) + (f" and {more} more" if more > 0 else "")


@contextmanager
def one_language(directory: Path, settings: Mapping[str, Any], target_lang: str | None) -> Iterator[Path]:
    """A temporary directory with a tokenizer's files whose vocabulary holds one language alone.

    Tokens are numbered as in that language's vocabulary, whichever one the files were saved in: Transformers would take
    the numbers of multi-letter tokens from tokenizer_config.json, where they may be those of another language.

    Args:
        directory: of the tokenizer.
        settings: contents of its JSON files besides the vocabulary, by name.
        target_lang: the language; None for that of tokenizer_config.json.

    Raises:
        InputError: the vocabulary is not nested, lacks the language, or no language is named.
    """
    languages = nested_languages(directory)
    if not languages:
        raise InputError(
            f"{directory} has the vocabulary of one language (vocab.json), so there is none to choose by target_lang "
            f'{target_lang}. Leave it out, or write that vocabulary as {{"{target_lang}": {{...}}}}.'
        )
    config = settings.get(_CONFIG, {})
    chosen = config.get("target_lang") if target_lang is None else target_lang
    if chosen is None:
        raise InputError(
            f"{directory} has vocabularies of {len(languages)} languages (vocab.json), and none is chosen. Choose one "
            f"with --target_lang: {listed(languages)}."
        )
    if chosen not in languages:
        raise InputError(
            f"{directory} has no vocabulary of the language {shown(chosen)} (vocab.json). It has those of "
            f"{listed(languages)}."
        )
    config = {name: value for name, value in config.items() if name != _OF_ANOTHER_LANGUAGE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = {chosen: read_json_object(directory / VOCABULARY)[chosen]}
        written = settings | {VOCABULARY: vocabulary, _CONFIG: config | {"target_lang": chosen}}
        for file, content in written.items():
            if file != "added_tokens.json":  # numbered as in another language, too
                (folder / file).write_text(json.dumps(content), encoding="utf-8")
        yield folder
