"""What a run starts from: a checkpoint, its parts, or random weights in a shape; found, and read into parameters."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xtremes_jax import hub
from xtremes_jax.arguments import ModelArguments
from xtremes_jax.data.subwords import first_token, holds_subword_tokenizer
from xtremes_jax.errors import InputError
from xtremes_jax.feature_extractors import has_preprocessor, new_preprocessor, read_preprocessor
from xtremes_jax.languages import (
    Language,
    check_name,
    check_new_width,
    check_not_of_base,
    find_language,
    with_language,
)
from xtremes_jax.lora_directory import AdaptedBase, adapted_base
from xtremes_jax.models import (
    DECODER_PRESETS,
    PRESETS,
    TRANSLATION_MODEL_TYPE,
    DecoderConfig,
    GenerationConfig,
    ModelConfig,
    Report,
    TranslationConfig,
    build_model,
    config_from_huggingface,
    flatten_params,
    from_encoder_and_decoder,
    from_huggingface,
    label_names,
    split_params,
    to_huggingface,
)
from xtremes_jax.models.config import LANGUAGE_ADAPTER, Head
from xtremes_jax.models.model import Params
from xtremes_jax.models.weights import Tensors, read_json_object, read_tensors
from xtremes_jax.tasks import nearest

_LONGEST = 128
"""Most tokens of a translation where nobody says."""


@dataclass(frozen=True)
class DecoderStart:
    """The decoder that a translation run starts from, before its vocabulary and regularisation are set."""

    source: str
    """Hub id, directory, or the preset or config.json of random weights."""
    directory: Path | None
    """Where its weights and its tokenizer lie; None for random weights."""
    config: dict[str, Any]
    """Contents of its config.json, or of the joint config's "decoder"."""
    generation: dict[str, Any] | None
    """Contents of its generation_config.json; None where there is none, as in older directories."""


@dataclass(frozen=True)
class StartingPoint:
    """What a run starts from, before its own head and regularisation are set."""

    source: str
    """Hub id, directory, or the preset or config.json of random weights."""
    directory: Path | None
    """Where the checkpoint lies; None for random weights."""
    config: dict[str, Any]
    """Contents of the checkpoint's config.json."""
    preprocessor: dict[str, Any]
    decoder: DecoderStart | None = None
    """For translation. Its directory is the checkpoint's own where that holds both halves."""
    adapted: AdaptedBase | None = None
    """Where the directory holds a low-rank adapter: its base, whose weights it changes."""
    language: Language | None = None
    """The language whose adapters and head take the place of the checkpoint's; None leaves those."""

    @property
    def is_joint(self) -> bool:
        """Whether the checkpoint holds an encoder and a decoder."""
        return self.config.get("model_type") == TRANSLATION_MODEL_TYPE

    @property
    def folders(self) -> list[Path]:
        """Where the checkpoint's small files may lie, the ones that count first."""
        return [] if self.directory is None else _folders(self.directory, self.adapted)

    def tensors(self) -> Tensors:
        """The weights of the checkpoint; there has to be one."""
        return read_tensors(self.directory) if self.adapted is None else self.adapted.tensors()

    @property
    def encoder_config(self) -> dict[str, Any]:
        """Contents of the encoder's config.json."""
        return self.config["encoder"] if self.is_joint else self.config

    @property
    def decoder_start_token_id(self) -> int | None:
        """The token that a pretrained decoder starts a sentence with, as far as the checkpoint says."""
        if self.decoder is None or self.decoder.directory is None:
            return None
        said = [config.get("decoder_start_token_id") for config in (self.config, self.decoder.config)]
        return next((token for token in said if token is not None), None)

    @property
    def label_names(self) -> list[str]:
        """Names of the checkpoint's classes by class id; empty if it names none."""
        with _of(self.source):
            return label_names(self.config)


def starting_point(
    model: ModelArguments,
    *,
    translation: bool | None = False,
    token: str | None = None,
    weights: bool = True,
    trains: bool = False,
) -> StartingPoint:
    """Finds a checkpoint (downloading it if it is on the hub), or the configuration for random weights.

    Args:
        model: names the checkpoint or the shape, and for translation the decoder's.
        translation: whether a decoder is needed; None takes what the checkpoint is.
        token: of the hub.
        weights: False leaves the weights where they are: a directory need not hold any, and none are downloaded.
        trains: whether what the checkpoint lacks may be learned: a language.

    Raises:
        InputError: it is not there, is of another architecture, lacks the decoder that is needed, or has one too many;
            lacks the language; or its files are damaged.
    """
    start = _with_adapters(_encoder_or_joint(model, token, weights), model, weights=weights, trains=trains)
    if translation is None:
        translation = start.is_joint
    if not translation:
        if start.is_joint:
            raise InputError(f"{start.source} is a model of speech translation: use it with --task covost2.")
        return start
    if start.is_joint:
        _check_joint(start, model)
        folder = next((folder for folder in start.folders if holds_subword_tokenizer(folder)), start.directory)
        generation = next(filter(None, map(_generation, start.folders)), None)
        decoder = DecoderStart(start.source, folder, start.config["decoder"], generation)
    else:
        decoder = _separate_decoder(start, model, token, weights)
    return dataclasses.replace(start, decoder=decoder)


def _encoder_or_joint(model: ModelArguments, token: str | None, weights: bool) -> StartingPoint:
    config_name, source = model.config_name, model.model_name_or_path
    if model.target_lang is not None:
        check_name(model.target_lang)
    if source is not None:
        directory = hub.resolve_model(
            source, cache_dir=model.cache_dir, token=token, weights=weights, target_lang=model.target_lang
        )
        adapted = adapted_base(source, directory, cache_dir=model.cache_dir, token=token, weights=weights)
        has_config = adapted is None or (directory / "config.json").is_file()
        config = hub.read_config(directory) if has_config else adapted.config()
        folders = [folder for folder in _folders(directory, adapted) if has_preprocessor(folder)]
        preprocessor = read_preprocessor(folders[0] if folders else directory, config)
        return StartingPoint(source, directory, config, preprocessor, adapted=adapted)
    config = _shape(config_name, "--config_name", PRESETS)
    return StartingPoint(config_name, None, config, new_preprocessor(config))


def _folders(directory: Path, adapted: AdaptedBase | None) -> list[Path]:
    return [directory] if adapted is None else [directory, adapted.directory]


def _with_adapters(start: StartingPoint, model: ModelArguments, *, weights: bool, trains: bool) -> StartingPoint:
    """The starting point with the language that is asked for, and the size of its vocabulary where that is known."""
    config, width, name = start.config, model.adapter_attn_dim if trains else None, model.target_lang
    if width is not None:
        check_new_width(width, start.source, start.encoder_config)
    if name is None:
        return start
    if start.adapted is not None:
        check_not_of_base(name, start.source, start.adapted.adapter.base, start.adapted.directory)
    language = find_language(
        name,
        start.source,
        start.directory,
        config if width is None else config | {LANGUAGE_ADAPTER: width},
        is_local=os.path.isdir(os.path.expanduser(start.source)),
        may_be_new=trains,
        weights=weights,
    )
    if language.adapter is not None:
        config = config | {"vocab_size": language.vocab_size}
    return dataclasses.replace(start, config=config, language=language)


def _shape(name: str, flag: str, presets: dict[str, Any]) -> dict[str, Any]:
    """Contents of the config.json that a preset, a directory or a file stands for."""
    path = Path(name)
    if os.path.isdir(path):
        return hub.read_config(path)
    if path.suffix == ".json":
        return read_json_object(path)
    if name in presets:
        return presets[name].to_huggingface()
    raise InputError(
        f"{flag} {name} is neither a config.json nor a preset{nearest(name, presets)} Presets: {', '.join(presets)}."
    )


def _check_joint(start: StartingPoint, model: ModelArguments) -> None:
    for part in ("encoder", "decoder"):
        if not isinstance(start.config.get(part), dict):
            raise InputError(
                f'{start.source}: config.json has no "{part}", so it describes no {TRANSLATION_MODEL_TYPE} model.'
            )
    for name in ("decoder_name_or_path", "decoder_config_name"):
        if getattr(model, name) is not None:
            raise InputError(
                f"{start.source} brings a decoder of its own, so --{name} has no place. Drop it, or name an encoder "
                "alone with --model_name_or_path."
            )


def _separate_decoder(start: StartingPoint, model: ModelArguments, token: str | None, weights: bool) -> DecoderStart:
    if model.decoder_name_or_path is not None:
        source = model.decoder_name_or_path
        directory = hub.resolve_model(source, cache_dir=model.cache_dir, token=token, weights=weights)
        return DecoderStart(source, directory, hub.read_config(directory), _generation(directory))
    if model.decoder_config_name is None:
        raise InputError(
            f"{start.source} is an encoder without a decoder, which translation needs. Name a speech-encoder-decoder "
            "model, or train one: with --decoder_name_or_path (an mBART, for example facebook/mbart-large-50) or "
            "--decoder_config_name (random weights, for example small)."
        )
    name = model.decoder_config_name
    return DecoderStart(name, None, _shape(name, "--decoder_config_name", DECODER_PRESETS), None)


def _generation(directory: Path) -> dict[str, Any] | None:
    path = directory / "generation_config.json"
    return read_json_object(path) if path.is_file() else None


@contextmanager
def _of(source: str) -> Iterator[None]:
    """Says which checkpoint it is whose fields cannot be used."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def configure(start: StartingPoint, head: Head | None, changes: Mapping[str, Any]) -> ModelConfig:
    """The architecture of a starting point with a head, and with the fields of `changes` set (None leaves a field).

    Without a head it is the one that the checkpoint names, if any.

    Raises:
        InputError: the checkpoint is of another architecture, or its fields are of the wrong type or size.
    """
    with _of(start.source):
        config = config_from_huggingface(start.config, head=head, normalize_waveform=_normalizes(start))
    return _changed(config, _padding(start, changes))


def configure_translator(
    start: StartingPoint, encoder: Mapping[str, Any], decoder: Mapping[str, Any]
) -> TranslationConfig:
    """The architecture of a starting point of translation, with fields of its halves set (None leaves a field).

    Raises:
        InputError: a half is of another architecture, or they do not fit together.
    """
    if start.is_joint:
        with _of(start.source):
            config = TranslationConfig.from_huggingface(start.config, normalize_waveform=_normalizes(start))
        changed = _changed(config.decoder, decoder)
        speech = _changed(config.encoder, _padding(start, encoder))
        return dataclasses.replace(config, encoder=speech, decoder=changed)
    with _of(start.decoder.source):
        reader = DecoderConfig.from_huggingface(start.decoder.config)
    with _of(start.source):
        speech = config_from_huggingface(start.config, normalize_waveform=_normalizes(start))
    reader = _changed(reader, decoder)
    return TranslationConfig(
        encoder=_changed(dataclasses.replace(speech, head=None), _padding(start, encoder)),
        decoder=reader,
        decoder_start_token_id=reader.decoder_start_token_id,
        eos_token_id=reader.eos_token_id,
        pad_token_id=reader.pad_token_id,
    )


def generation_config(
    start: StartingPoint,
    config: TranslationConfig,
    tokenizer: Any,
    *,
    num_beams: int | None = None,
    max_length: int | None = None,
) -> GenerationConfig:
    """How translations are searched for: as the checkpoint says, but for what is given here.

    Args:
        start: a starting point of translation.
        config: the model.
        tokenizer: the decoder's; a language's token that it puts before every sentence is forced there, unless the
            sentence starts with that token anyway, or the checkpoint is one of both halves, which says so itself.
        num_beams, max_length: None leaves the checkpoint's; where it sets no length, that is 128 tokens.

    Raises:
        InputError: the checkpoint asks for another search, or for more than the model has.
    """
    levels = [start.decoder.generation]
    with _of(start.decoder.source):
        if start.decoder.generation is not None:
            found = GenerationConfig.from_huggingface(start.decoder.generation, config)
        elif start.decoder.directory is not None:
            levels = [start.decoder.config, start.config if start.is_joint else {}]
            found = GenerationConfig.from_model_config(start.config if start.is_joint else start.decoder.config, config)
        else:  # random weights: the preset's tokens are not those of the tokenizer
            levels = []
            found = GenerationConfig.from_model_config({}, config)
    limits = [level.get(name) for level in levels for name in ("max_length", "max_new_tokens")]
    if max_length is None and all(limit is None for limit in limits):
        max_length = min(_LONGEST, config.decoder.max_position_embeddings)
    changes = {"num_beams": num_beams, "max_length": max_length}
    if found.forced_bos_token_id is None and not start.is_joint:
        first = first_token(tokenizer)
        changes["forced_bos_token_id"] = None if first == config.decoder_start_token_id else first
    changed = _changed(found, changes)
    with _of(start.decoder.source):
        changed.check_fits(config)
    return changed


def _normalizes(start: StartingPoint) -> bool:
    return bool(start.preprocessor.get("do_normalize", True))


def _padding(start: StartingPoint, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of an encoder's fields; where they do not say whether padding is masked, as the checkpoint has it."""
    masks = changes.get("mask_padding")
    masks = start.preprocessor.get("return_attention_mask", True) if masks is None else masks
    return {**changes, "mask_padding": masks}


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})


def initial_params(
    start: StartingPoint, config: ModelConfig | TranslationConfig, *, seed: int, replace_head: bool
) -> tuple[dict[str, np.ndarray], Report | None]:
    """Parameters by dotted name (float32, on the host), and what of the checkpoint did not match.

    Args:
        seed: for whatever is drawn anew.
        replace_head: draw a new head where the checkpoint's has another number of labels, instead of refusing it.
    """
    if isinstance(config, TranslationConfig) and not start.is_joint:
        return _joined_params(start, config, seed)
    if start.directory is None:
        return _on_the_host(_draw(config, seed)), None
    tensors = start.tensors()
    if start.language is not None:
        tensors = with_language(tensors, start.language, config)
    params, report = from_huggingface(
        tensors, config, seed=seed, replace_head=replace_head, new_adapters=has_new_adapters(start)
    )
    return flatten_params(params), report


def has_new_adapters(start: StartingPoint) -> bool:
    """Whether adapters in the layers, where the model is to have any, are none of the checkpoint's."""
    is_new = start.language is not None and start.language.is_new
    return is_new or start.encoder_config.get(LANGUAGE_ADAPTER) is None


def _joined_params(
    start: StartingPoint, config: TranslationConfig, seed: int
) -> tuple[dict[str, np.ndarray], Report | None]:
    """Parameters of an encoder and a decoder, each of them pretrained or random."""
    readers = {
        "encoder": None if start.directory is None else start.tensors,
        "decoder": None if start.decoder.directory is None else partial(read_tensors, start.decoder.directory),
    }
    drawn: dict[str, np.ndarray] = {}
    if None in readers.values():
        params = _draw(config, seed)
        if set(readers.values()) == {None}:
            return _on_the_host(params), None
        drawn = to_huggingface(params, config)
    tensors = {
        part: {name.removeprefix(f"{part}."): drawn[name] for name in drawn if name.startswith(f"{part}.")}
        if read is None
        else read()
        for part, read in readers.items()
    }
    params, report = from_encoder_and_decoder(tensors["encoder"], tensors["decoder"], config, seed=seed)
    return flatten_params(params), report


def _draw(config: ModelConfig | TranslationConfig, seed: int) -> Params:
    return split_params(jax.jit(lambda: build_model(config, seed=jax.random.key(seed)))())[1]


def _on_the_host(params: Params) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten_params(params).items()}
