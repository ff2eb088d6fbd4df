"""The architecture of an mBART decoder, to and from the `config.json` of Transformers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtremes_jax.errors import InputError
from xtremes_jax.models.config_checks import ACTIVATIONS
from xtremes_jax.models.config_fields import check_field, check_parameters, from_json, shown

_RATES = ("dropout", "attention_dropout", "activation_dropout", "decoder_layerdrop")
POSITION_OFFSET = 2
"""Row of the table of positions that belongs to the first token, as in every BART."""
_UNSUPPORTED = ("cross_attention_hidden_size", "quantization_config")


@dataclass(frozen=True)
class DecoderConfig:
    """One mBART decoder (Liu et al. 2020): pre-norm, learned positions, output tied to the embedding of tokens.

    Field names and defaults are those of `transformers.MBartConfig`, which are the large model's. The object is
    hashable. Raises `InputError` where the fields do not fit together.
    """

    vocab_size: int = 50265
    """Tokens of the vocabulary."""
    d_model: int = 1024
    """Width of the decoder."""
    decoder_layers: int = 12
    """Number of Transformer layers."""
    decoder_attention_heads: int = 16
    """Attention heads per layer; divides `d_model`."""
    decoder_ffn_dim: int = 4096
    """Width of the feed-forward block."""
    max_position_embeddings: int = 1024
    """Longest sequence of tokens, the start token among them."""
    activation_function: str = "gelu"
    """Activation of the feed-forward block."""
    scale_embedding: bool = False
    """Whether embeddings of tokens are multiplied by the square root of `d_model` on their way in."""
    init_std: float = 0.02
    """Standard deviation of newly drawn weights."""

    # Regularisation, in training only.
    dropout: float = 0.1
    """Dropout rate of the embeddings, and after each attention and feed-forward block."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention probabilities."""
    activation_dropout: float = 0.0
    """Dropout rate inside the feed-forward block."""
    decoder_layerdrop: float = 0.0
    """Probability of skipping a whole layer (Fan et al. 2019)."""

    # Tokens.
    pad_token_id: int = 1
    """The padding token; its embedding is not trained as an input."""
    bos_token_id: int | None = 0
    """The token that begins a sentence, if any."""
    eos_token_id: int | None = 2
    """The token that ends a sentence, if any."""
    decoder_start_token_id: int | None = None
    """The token that a decoder on its own starts with; a `TranslationConfig` has one of its own."""
    forced_eos_token_id: int | None = 2
    """The token that generation ends a sentence with at its length limit, unless a generation configuration says."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        check_parameters(self.num_parameters)
        if self.activation_function not in ACTIVATIONS:
            raise InputError(
                f"activation_function is {shown(self.activation_function)}; known are {', '.join(ACTIVATIONS)}."
            )
        if self.d_model % self.decoder_attention_heads:
            raise InputError(
                f"decoder_attention_heads ({self.decoder_attention_heads}) does not divide d_model ({self.d_model})."
            )
        for name in _RATES:
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1.")
        if self.init_std < 0:
            raise InputError(f"init_std is {self.init_std}; it must be at least 0.")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
            check_token(name, getattr(self, name), self.vocab_size)

    @property
    def num_parameters(self) -> int:
        """Elements of all matrices: the decoder's parameters but for biases and norms."""
        rows = self.vocab_size + self.max_position_embeddings + POSITION_OFFSET
        return self.d_model * (rows + self.decoder_layers * (8 * self.d_model + 2 * self.decoder_ffn_dim))

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any]) -> "DecoderConfig":
        """Reads the contents of the `config.json` of an mBART model, of which the encoder's fields are passed over.

        Raises:
            InputError: the model is not mBART, or has a part that is not implemented; the field is named.
        """
        if config.get("model_type") != "mbart":
            raise InputError(
                f"The decoder's config has model_type {shown(config.get('model_type'))}; only 'mbart' can be loaded."
            )
        if config.get("tie_word_embeddings") is False:
            raise InputError(
                "The decoder's config has tie_word_embeddings false: only decoders whose output is tied to their "
                "embedding of tokens are implemented."
            )
        for name in _UNSUPPORTED:
            value = config.get(name)
            if value is not None and not (name == "cross_attention_hidden_size" and value == config.get("d_model")):
                raise InputError(f"The decoder's config sets {name} ({shown(value)}), which is not implemented here.")
        fields = {}
        for field in dataclasses.fields(cls):
            if field.name in config and (config[field.name] is not None or field.type == int | None):
                fields[field.name] = from_json(field, single(field.name, config[field.name]))
        return cls(**fields)

    def to_huggingface(self) -> dict[str, Any]:
        """The contents of a `config.json` from which Transformers builds `MBartForCausalLM` with cross-attention."""
        return {
            "model_type": "mbart",
            "architectures": ["MBartForCausalLM"],
            "dtype": "float32",
            "is_decoder": True,
            "is_encoder_decoder": False,
            "add_cross_attention": True,
            "tie_word_embeddings": True,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
        }


def single(name: str, value: Any) -> Any:
    """A token id that may be written as a list of one; InputError for more than one."""
    if name.endswith("_token_id") and isinstance(value, list):
        if len(value) != 1:
            raise InputError(f"{name} is {shown(value)}; only a single token is implemented.")
        return value[0]
    return value


def check_token(name: str, token: int | None, vocab_size: int) -> None:
    """Raises `InputError` unless a token is none or in the vocabulary."""
    if token is not None and token >= vocab_size:
        raise InputError(f"{name} is {token}, which is not in the vocabulary of {vocab_size} tokens.")


_LARGE = DecoderConfig(vocab_size=250_027, scale_embedding=True)
_SMALL = dataclasses.replace(
    _LARGE, vocab_size=8000, d_model=256, decoder_layers=4, decoder_attention_heads=4, decoder_ffn_dim=1024
)

DECODER_PRESETS: dict[str, DecoderConfig] = {
    "tiny": dataclasses.replace(
        _SMALL,
        vocab_size=256,
        d_model=64,
        decoder_layers=2,
        decoder_ffn_dim=128,
        max_position_embeddings=256,
        init_std=0.1,
    ),
    "small": dataclasses.replace(_SMALL, max_position_embeddings=512, init_std=0.05),
    "mbart_large": _LARGE,
}
"""Named architectures: `mbart_large` is the decoder of mBART (250,027 tokens).

`tiny` (for tests) and `small` (for small corpora, from random weights) are laid out as that and never published.
Their weights are drawn wider than mBART's: with those, a narrow decoder takes much longer to heed its encoder.
"""
