"""The part of a model that belongs to one language: adapters in its layers and its head, in a file of their own.

So MMS has it (Pratap et al. 2023): beside the weights lies `adapter.<language>.safetensors` for each language, and the
vocabulary is nested, `{language: {token: id}}`. Files and their names are those of Transformers' `load_adapter`.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.models import ModelConfig, config_class_of, is_of_language, language_part
from xtremes_jax.models.config import LANGUAGE_ADAPTER
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.weights import ADAPTER_FILES, Tensors, read_tensor_file
from xtremes_jax.nested_vocabulary import listed, nested_languages
from xtremes_jax.tasks import nearest

logger = logging.getLogger(__name__)

_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Language:
    """The language that a model is asked to have."""

    name: str
    """As the adapter's file and the vocabulary spell it, such as `fra`."""
    adapter: Path | None
    """The file of its adapters and head; None where it is new, or where weights are not looked at."""
    is_new: bool
    """Whether adapters, head and vocabulary are to be made by training."""

    @property
    def vocab_size(self) -> int | None:
        """Labels of the head in the adapter's file; None where there is no file."""
        if self.adapter is None:
            return None
        held = read_tensor_file(self.adapter)
        if _HEAD not in held or held[_HEAD].ndim != 2:
            raise InputError(f"{self.adapter} holds no {_HEAD}, which every adapter has. Download or export it again.")
        return held[_HEAD].shape[0]


def check_name(name: str) -> None:
    """Raises `InputError` where a language's name could be no part of a file's name."""
    if not re.fullmatch(r"[a-z0-9][\w.-]{0,99}", name, re.ASCII | re.IGNORECASE):
        raise InputError(
            f"target_lang {shown(name)} is no name of a language: it is made of letters, digits, - and _, such as fra "
            "or azj-script_latin."
        )


def find_language(
    name: str,
    source: str,
    directory: Path | None,
    config: Mapping[str, Any],
    *,
    is_local: bool,
    may_be_new: bool,
    weights: bool,
) -> Language:
    """The language of this name in a checkpoint.

    Args:
        name: as `check_name` takes it.
        source: what the checkpoint is called in messages.
        directory: where it lies; None for random weights.
        config: contents of its config.json, with an `adapter_attn_dim` that is to be added.
        is_local: False for a download, which has the one adapter that was asked for.
        may_be_new: whether a language that it lacks is one to be learned.
        weights: False where a plan does without: then the vocabulary tells what is there.

    Raises:
        InputError: the model has no adapters, or none of this language.
    """
    family = config_class_of(config)
    if config.get("model_type") != ModelConfig.model_type:
        what = config.get("model_type") if family is ModelConfig else family.family
        raise InputError(
            f"target_lang {name}: {source} is a model of {shown(what)}; files of languages are there for wav2vec 2.0 "
            "(MMS) alone. Leave it out."
        )
    if config.get(LANGUAGE_ADAPTER) is None or not config.get("do_stable_layer_norm"):
        raise InputError(
            f"target_lang {name}: {source} has no adapters of languages (adapter_attn_dim in its config.json). Leave "
            "it out, choose a checkpoint like facebook/mms-1b-all, or train adapters: --do_train --adapter_attn_dim 16."
        )
    if directory is None:
        return Language(name, None, is_new=True)
    adapter = _adapters_in(directory).get(name)
    if adapter is not None:
        return Language(name, adapter, is_new=False)
    named = nested_languages(directory)
    if not weights and name in named:
        return Language(name, None, is_new=False)
    if name in named:  # the weights may be that language's, or the file may have been left behind
        raise InputError(
            f"{source} has a vocabulary of the language {name}, and no {ADAPTER_FILES[0].replace('*', name)} beside "
            "the weights. Put it there, or leave out target_lang to go on with the adapters that the weights hold."
        )
    known = _adapters_in(directory) if is_local else named
    if not may_be_new:
        raise InputError(
            f"{source} has no adapter for the language {name}{nearest(name, known)} {_has(known)} To train a new "
            "one: python -m xtremes_jax.train --do_train."
        )
    logger.warning(
        "%s has no adapter for the language %s%s New ones are drawn, and a new head. %s",
        source, name, nearest(name, known), _has(known),
    )  # fmt: skip
    return Language(name, None, is_new=True)


def check_not_of_base(name: str, source: str, base: str, directory: Path) -> None:
    """Raises `InputError` where a low-rank adapter's base, which lies in `directory`, has a language of this name."""
    if name in nested_languages(directory) or name in _adapters_in(directory):
        raise InputError(
            f"target_lang {name}: {source} is an adapter of {base}, which has that language in a file of its own; the "
            "two cannot be joined. Leave it out to go on with the language that the adapter was trained in, or name "
            "the base alone."
        )


def _has(languages: Iterable[str]) -> str:
    languages = list(languages)
    return f"It has {listed(languages)}." if languages else "It has none of any language."


def _adapters_in(directory: Path) -> dict[str, Path]:
    """Language -> the file of its adapters; of two kinds that which comes first in `ADAPTER_FILES`."""
    found: dict[str, Path] = {}
    for pattern in ADAPTER_FILES:
        start, _, end = pattern.partition("*")
        for file in directory.glob(pattern):
            found.setdefault(file.name.removeprefix(start).removesuffix(end), file)
    return found


def check_new_width(width: int, source: str, config: Mapping[str, Any]) -> None:
    """Raises `InputError` where a model has no place for adapters of `--adapter_attn_dim`, or has others already."""
    family = config_class_of(config)
    if LANGUAGE_ADAPTER in family.lacking:
        raise InputError(
            f"--adapter_attn_dim {width}: models of {family.family} ({source}) have no place for adapters in their "
            "layers. Choose one of wav2vec 2.0 or XLS-R."
        )
    if not config.get("do_stable_layer_norm"):
        raise InputError(
            f"--adapter_attn_dim {width}: {source} has its norms after the blocks (do_stable_layer_norm false in its "
            "config.json), where Transformers has no place for adapters. Choose XLS-R or another large model."
        )
    held = config.get(LANGUAGE_ADAPTER)
    if held not in (None, width):
        raise InputError(f"--adapter_attn_dim {width}: {source} has adapters that are {shown(held)} wide. Drop it.")


def of_language(config: ModelConfig, tokenizer: Any, source: str) -> ModelConfig:
    """The configuration with the blank of a language's vocabulary.

    Raises:
        InputError: the vocabulary has tokens that the head has no outputs for.
    """
    if len(tokenizer) > config.vocab_size:
        raise _unlike(config.vocab_size, tokenizer, source)
    return dataclasses.replace(config, pad_token_id=tokenizer.pad_token_id)


def check_vocabulary(language: Language, tokenizer: Any, source: str) -> None:
    """Raises `InputError` unless a head that is to be trained further has an output for each token."""
    if language.vocab_size not in (None, len(tokenizer)):
        raise _unlike(language.vocab_size, tokenizer, f"{source}, {language.name}")


def _unlike(outputs: int, tokenizer: Any, source: str) -> InputError:
    return InputError(
        f"{source}: the adapter's head has {outputs} outputs, and the vocabulary {len(tokenizer)} tokens: they do not "
        "belong together. Name the right tokenizer with --tokenizer_name_or_path."
    )


def with_language(tensors: Mapping[str, np.ndarray], language: Language, config: ModelConfig) -> Tensors:
    """A checkpoint's tensors, with those of a language in place of the ones that it holds; without any for a new one.

    Raises:
        InputError: the adapter's file lacks a tensor, holds one too many, or one of another shape; it is named.
    """
    readers = {name: partial(tensors.__getitem__, name) for name in tensors if not is_of_language(name)}
    if language.adapter is None:
        return Tensors(readers)
    held = read_tensor_file(language.adapter)
    wanted = language_part(config)
    for names, problem in (
        (wanted.keys() - held.keys(), "lacks"),
        (held.keys() - wanted.keys(), "holds, though this model has no place for it,"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{language.adapter} {problem} {shown(min(names))}{more}: it is of another model.")
    rows = language.vocab_size
    for name, shape in wanted.items():
        expected = (rows, *shape[1:]) if name.startswith("lm_head.") else shape
        if held[name].shape != expected:
            raise InputError(
                f"{language.adapter}: {name} has shape {held[name].shape}, and {expected} in this model: the file is "
                "of another model."
            )
        readers[name] = partial(held.__getitem__, name)
    return Tensors(readers)
