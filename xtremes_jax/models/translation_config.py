"""A speech encoder and a text decoder as one model, to and from the nested `config.json` of Transformers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtremes_jax.errors import InputError
from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.config_fields import check_field, shown
from xtremes_jax.models.decoder_config import DecoderConfig, check_token, single
from xtremes_jax.models.families import config_from_huggingface

_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
TRANSLATION_MODEL_TYPE = "speech-encoder-decoder"


@dataclass(frozen=True)
class TranslationConfig:
    """A speech encoder, an mBART decoder that reads it, and the tokens that begin and end a translation.

    The object is hashable. Raises `InputError` where the parts do not fit together.
    """

    encoder: ModelConfig
    """The speech encoder; its head must be none."""
    decoder: DecoderConfig
    """The text decoder."""
    decoder_start_token_id: int | None
    """The token that every translation starts with, before any of its labels."""
    eos_token_id: int = 2
    """The token that ends a translation."""
    pad_token_id: int = 1
    """The token that fills up a shorter translation."""

    def __post_init__(self) -> None:
        if self.decoder_start_token_id is None:
            raise InputError(
                "The decoder has no start token (decoder_start_token_id): set it to the token that its tokenizer "
                "begins a sentence of the target language with."
            )
        if self.encoder.head is not None:
            raise InputError(
                f"The encoder of a translation model has no head, but {self.encoder.head!r} was asked for."
            )
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        for name in _TOKENS:
            check_token(name, getattr(self, name), self.decoder.vocab_size)
        if self.has_projection and self.encoder.output_width != self.encoder.hidden_size:
            raise InputError(
                f"The encoder's adapter gives {self.encoder.output_width} features and the decoder takes "
                f"{self.decoder.d_model}: Transformers projects only outputs as wide as the encoder "
                f"({self.encoder.hidden_size}). Set output_hidden_size to one of the latter two."
            )

    @property
    def has_projection(self) -> bool:
        """Whether a linear map stands between encoder and decoder, since their widths differ."""
        return self.encoder.output_width != self.decoder.d_model

    @property
    def vocab_size(self) -> int:
        """Tokens that the decoder chooses from."""
        return self.decoder.vocab_size

    @property
    def normalize_waveform(self) -> bool:
        """Whether waveforms are brought to zero mean and unit variance."""
        return self.encoder.normalize_waveform

    @classmethod
    def from_huggingface(
        cls,
        config: Mapping[str, Any],
        *,
        normalize_waveform: bool = True,
    ) -> "TranslationConfig":
        """Reads the nested `config.json` of a `SpeechEncoderDecoderModel`.

        Args:
            config: the parsed JSON. Tokens that it does not give itself are the decoder's.
            normalize_waveform: `do_normalize` of the checkpoint's feature extractor.

        Raises:
            InputError: another model, a part that is not implemented, or no start token; the field is named.
        """
        if config.get("model_type") != TRANSLATION_MODEL_TYPE:
            raise InputError(
                f"config.json has model_type {shown(config.get('model_type'))}; a translation model has "
                f"{TRANSLATION_MODEL_TYPE!r}. Give an encoder and a decoder, or choose another checkpoint."
            )
        parts = {}
        for name in ("encoder", "decoder"):
            parts[name] = config.get(name)
            if not isinstance(parts[name], Mapping):
                raise InputError(f"config.json: {name} is {shown(parts[name])}; it must be that part's configuration.")
        decoder = DecoderConfig.from_huggingface(parts["decoder"])
        tokens = {}
        for name in _TOKENS:
            found = single(name, config.get(name))
            tokens[name] = getattr(decoder, name) if found is None else found
            if tokens[name] is None and name == "eos_token_id":
                raise InputError("config.json has no eos_token_id, which ends a translation. Add it.")
        for field in dataclasses.fields(cls):
            if field.name in tokens:
                check_field(field, tokens[field.name])
        encoder = dict(parts["encoder"]) | {"architectures": None}
        return cls(
            encoder=config_from_huggingface(encoder, normalize_waveform=normalize_waveform),
            decoder=decoder,
            **tokens,
        )

    def to_huggingface(self) -> dict[str, Any]:
        """The contents of a `config.json` from which Transformers builds the same `SpeechEncoderDecoderModel`."""
        return {
            "model_type": TRANSLATION_MODEL_TYPE,
            "architectures": ["SpeechEncoderDecoderModel"],
            "dtype": "float32",
            "is_encoder_decoder": True,
            "tie_word_embeddings": False,  # between the parts; the decoder's own tie is in its own configuration
            "encoder": self.encoder.to_huggingface(),
            "decoder": self.decoder.to_huggingface(),
            "decoder_start_token_id": self.decoder_start_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }
