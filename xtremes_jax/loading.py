"""Fine-tuned models ready for use, from disk or from the hub: weights, configuration, tokenizer and class names."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtremes_jax import hub
from xtremes_jax.arguments import ModelArguments
from xtremes_jax.data.subwords import load_subword_tokenizer
from xtremes_jax.errors import InputError
from xtremes_jax.languages import of_language
from xtremes_jax.models import (
    Generated,
    GenerationConfig,
    ModelConfig,
    ModelOutput,
    TranslationConfig,
    abstract_model,
    generate,
    merge,
    split_params,
    unflatten_params,
)
from xtremes_jax.starting import (
    StartingPoint,
    configure,
    configure_translator,
    generation_config,
    initial_params,
    starting_point,
)


class Model:
    """A fine-tuned model ready for use: `model(audio, audio_lengths)`.

    Attributes:
        config: the architecture.
        tokenizer: of a CTC model, else None.
        label_names: of a classification model, by class id, else None.
    """

    def __init__(self, params, config: ModelConfig, *, dtype: Any, tokenizer=None, label_names=None):
        self.graphdef, _ = split_params(abstract_model(config, dtype=dtype))
        self.params, self.config, self.dtype = params, config, dtype
        self.tokenizer, self.label_names = tokenizer, label_names

    @cached_property
    def with_padding_masked(self) -> "Model":
        """The model that gives of each clip what it gives alone, which most do anyway (`ModelConfig.mask_padding`)."""
        if self.config.mask_padding:
            return self
        config = dataclasses.replace(self.config, mask_padding=True)
        return Model(self.params, config, dtype=self.dtype, tokenizer=self.tokenizer, label_names=self.label_names)

    @cached_property
    def _forward(self) -> Callable:
        graphdef = self.graphdef
        return jax.jit(lambda params, audio, lengths: merge(graphdef, params)(audio, lengths))

    def __call__(self, audio, audio_lengths=None) -> ModelOutput:
        """Computes logits; compiled once for each shape of `audio`.

        Args:
            audio: `[batch, samples]` raw 16 kHz audio, int16 or float32 in [-1, 1]; the checkpoint's own normalisation
                is applied here.
            audio_lengths: `[batch]` valid samples of each row; None: all are. Each clip then gives what it gives alone,
                unless its family takes padding as silence: see `with_padding_masked`.

        Returns:
            `.logits`: `[batch, frames, vocabulary]` (CTC), `[batch, classes]` (classification) or `[batch, embedding]`
            of length 1 (retrieval), float32; `.logit_lengths`: `[batch]` valid frames for CTC, else None.

        Raises:
            InputError: `audio` is not two-dimensional, is of another dtype, or is too short for one frame.
        """
        return self._forward(self.params, *_checked(audio, audio_lengths))


class Translator:
    """A translation model ready for use: `model(audio, audio_lengths)`.

    Attributes:
        config: the architecture.
        tokenizer: of the decoder.
        generation: how a translation is searched for; `dataclasses.replace` it for other beams or lengths.
    """

    def __init__(self, params, config: TranslationConfig, *, dtype: Any, tokenizer, generation: GenerationConfig):
        self.graphdef, _ = split_params(abstract_model(config, dtype=dtype))
        self.params, self.config, self.dtype = params, config, dtype
        self.tokenizer, self.generation = tokenizer, generation

    @cached_property
    def with_padding_masked(self) -> "Translator":
        """As `Model.with_padding_masked`."""
        if self.config.encoder.mask_padding:
            return self
        encoder = dataclasses.replace(self.config.encoder, mask_padding=True)
        config = dataclasses.replace(self.config, encoder=encoder)
        parts = {"tokenizer": self.tokenizer, "generation": self.generation}
        return Translator(self.params, config, dtype=self.dtype, **parts)

    @cached_property
    def _write(self) -> Callable:
        graphdef = self.graphdef

        def write(params, audio, lengths, generation):
            return generate(merge(graphdef, params), audio, lengths, generation)

        return jax.jit(write, static_argnums=3)

    def __call__(self, audio, audio_lengths=None) -> Generated:
        """Translates speech into tokens; compiled once for each shape of `audio`.

        Args:
            audio, audio_lengths: as `Model` takes them.

        Returns:
            `.tokens`: `[batch, tokens]` token ids, the start token first; `.lengths`: `[batch]` how many count;
            `.cut_off`: `[batch]` whether a sentence hit the length limit.

        Raises:
            InputError: as `Model` raises it.
        """
        return self._write(self.params, *_checked(audio, audio_lengths), self.generation)


def _checked(audio, audio_lengths) -> tuple[Any, Any]:
    """Audio that a model takes, and its lengths as int32."""
    audio = np.asarray(audio) if not isinstance(audio, jax.Array) else audio
    if audio.ndim != 2:
        raise InputError(f"audio must have the axes [batch, samples]; its shape is {tuple(audio.shape)}.")
    if audio.dtype == np.float64:
        audio = audio.astype(np.float32)
    if audio.dtype not in (np.int16, np.float32):
        raise InputError(f"audio must be int16 or float32, not {audio.dtype}.")
    return audio, None if audio_lengths is None else jnp.asarray(audio_lengths, jnp.int32)


def load_model(
    path_or_id: str | Path,
    *,
    dtype: Any = jnp.float32,
    target_lang: str | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
) -> Model | Translator:
    """Loads a fine-tuned wav2vec 2.0 / XLS-R model from a directory or the Hugging Face hub.

    A speech encoder-decoder is returned as a `Translator`, any other model as a `Model`.

    Args:
        path_or_id: a Transformers directory (a run's output directory is one) or a hub id.
        dtype: what is computed in; logits are float32 in any case.
        target_lang: the language whose adapters, head and vocabulary a model like MMS is to have; None takes those in
            its weights.
        cache_dir, token: for the hub.

    Raises:
        InputError: there is no such model, it is of another architecture, has no fine-tuned head, or no such language.
    """
    start = starting_point(
        ModelArguments(model_name_or_path=str(path_or_id), cache_dir=cache_dir, target_lang=target_lang),
        translation=None,
        token=token,
    )
    if start.is_joint:
        return _load_translator(start, dtype)
    config = configure(start, None, {})
    if config.head is None:
        raise InputError(
            f"{path_or_id} has no head for recognition, classification or retrieval (architectures: "
            f"{start.config.get('architectures')}). Fine-tune it first: python -m xtremes_jax.train --help."
        )
    tokenizer = None
    if config.head == "ctc":
        tokenizer = _first_of(lambda folder: hub.load_tokenizer(folder, target_lang), start)
    if target_lang is not None and tokenizer is not None:
        config = of_language(config, tokenizer, start.source)
    params = _ready(start, config)
    names = (start.label_names or None) if config.head == "classification" else None
    return Model(params, config, dtype=dtype, tokenizer=tokenizer, label_names=names)


def _first_of(load: Callable, start: StartingPoint) -> Any:
    """What is found first in the checkpoint's folders; None if it is in none of them."""
    return next((found for folder in start.folders if (found := load(folder)) is not None), None)


def _ready(start: StartingPoint, config: ModelConfig | TranslationConfig) -> Any:
    """Parameters of a checkpoint that is complete."""
    params, report = initial_params(start, config, seed=0, replace_head=False)
    if report is not None and report.new_head:
        raise InputError(f"{start.source} holds no weights for its head: {', '.join(report.new_head)} are missing.")
    return jax.tree.map(jnp.asarray, unflatten_params(params))


def _load_translator(start: StartingPoint, dtype: Any) -> Translator:
    config = configure_translator(start, {}, {})
    tokenizer = _first_of(load_subword_tokenizer, start)
    if tokenizer is None:
        raise InputError(f"{start.source} holds no tokenizer, so what it writes cannot be read.")
    params = _ready(start, config)
    generation = generation_config(start, config, tokenizer)
    return Translator(params, config, dtype=dtype, tokenizer=tokenizer, generation=generation)
