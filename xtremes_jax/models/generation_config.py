"""How translations are generated, to and from the `generation_config.json` of Transformers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtremes_jax.errors import InputError
from xtremes_jax.models.config_fields import check_field, from_json, shown
from xtremes_jax.models.decoder_config import check_token, single
from xtremes_jax.models.translation_config import TranslationConfig

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "num_return_sequences": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "use_mtp": (False,),
    "low_memory": (False,),
    **dict.fromkeys(
        (
            "bad_words_ids",
            "begin_suppress_tokens",
            "constraints",
            "dola_layers",
            "exponential_decay_length_penalty",
            "force_words_ids",
            "max_time",
            "prompt_lookup_num_tokens",
            "sequence_bias",
            "stop_strings",
            "suppress_tokens",
            "watermarking_config",
        ),
        (),
    ),
}
"""What changes the output and is not implemented, with the values that leave it as it is (null always does)."""

_WITHOUT_EFFECT = (
    # of sampling, which is refused
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    # of assisted generation, which needs a second model
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_early_exit", "assistant_lookbehind", "assistant_ensemble_weight", "target_lookbehind"),
    *("max_matching_ngram_size", "speculation_type"),
    # of speed and of what else is returned
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "compile_config"),
    *("disable_compile", "continuous_batching_config", "return_dict_in_generate", "output_attentions"),
    *("output_hidden_states", "output_scores", "output_logits"),
    *("bos_token_id", "transformers_version", "_from_model_config", "_commit_hash"),
)
_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
_NEW_TOKENS = {"max_new_tokens": "max_length", "min_new_tokens": "min_length"}


@dataclass(frozen=True)
class GenerationConfig:
    """Greedy or beam search, its limits and its tokens.

    Field names, defaults and meanings are those of `transformers.GenerationConfig`. The object is hashable. Raises
    `InputError` where a field is of the wrong type or size.
    """

    decoder_start_token_id: int
    """The first token of every hypothesis."""
    eos_token_id: int
    """The token that ends a hypothesis."""
    pad_token_id: int
    """What follows the end."""
    num_beams: int = 1
    """Hypotheses that are followed at a time; 1 is greedy search."""
    max_length: int = 21
    """Most tokens of a hypothesis, the start token and the end token among them."""
    min_length: int = 0
    """A hypothesis of fewer tokens, the start token among them, is not ended."""
    length_penalty: float = 1.0
    """In beam search, log probabilities are divided by the number of tokens to this power: above 0 favours longer."""
    early_stopping: bool | str = False
    """When beam search stops: True, as soon as there are `num_beams` ended hypotheses; False, when the best running one
    would not beat the worst of these if it ended now; `"never"`, when it could not at any length."""
    no_repeat_ngram_size: int = 0
    """No sequence of so many tokens occurs twice in a hypothesis; 0 sets no limit."""
    forced_bos_token_id: int | None = None
    """The token that must follow the start token, such as a language's, if any."""
    forced_eos_token_id: int | None = None
    """The token that is put at the length limit, if any."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        _check_early_stopping(self.early_stopping)
        if self.max_length < 2:
            raise InputError(f"max_length is {self.max_length}; a start token and another one need at least 2.")

    @classmethod
    def from_huggingface(cls, fields: Mapping[str, Any], model: TranslationConfig) -> "GenerationConfig":
        """Reads the contents of a `generation_config.json`; tokens that it does not give are the model's.

        Raises:
            InputError: it asks for something that changes the output and is not implemented, or is not known; a field
                is of the wrong type or size. The field is named. Whether it fits the model: see `check_fits`.
        """
        known = {field.name for field in dataclasses.fields(cls)} | set(_NEW_TOKENS)
        for name, value in fields.items():
            if name in known or name in _WITHOUT_EFFECT or value is None:
                continue
            if name not in _NEUTRAL:
                raise InputError(
                    f"The generation configuration sets {name} ({shown(value)}), which is not known here. Remove it "
                    "from generation_config.json if it does not matter."
                )
            if value not in _NEUTRAL[name]:
                raise InputError(
                    f"The generation configuration sets {name} to {shown(value)}, which is not implemented here: only "
                    "greedy and beam search with their length and n-gram limits. Remove it from generation_config.json."
                )
        return cls._read(fields, model)

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any], model: TranslationConfig) -> "GenerationConfig":
        """Reads the generation fields of a `config.json`, for checkpoints without a `generation_config.json`.

        As in Transformers, those of the model itself come before those of its decoder.

        Raises:
            InputError: as `from_huggingface`.
        """
        known = {field.name for field in dataclasses.fields(cls)} | set(_NEW_TOKENS) | set(_NEUTRAL)
        nested = config.get("decoder")
        parts = [model.decoder.to_huggingface(), nested if isinstance(nested, Mapping) else {}, config]
        fields: dict[str, Any] = {}
        for part in parts:
            fields |= {name: part[name] for name in known & part.keys() if part is not config or part[name] is not None}
        return cls.from_huggingface({**fields, "decoder_start_token_id": model.decoder_start_token_id}, model)

    @classmethod
    def _read(cls, fields: Mapping[str, Any], model: TranslationConfig) -> "GenerationConfig":
        _check_early_stopping(False if fields.get("early_stopping") is None else fields["early_stopping"])
        read: dict[str, Any] = {name: getattr(model, name) for name in _TOKENS}
        for field in dataclasses.fields(cls):
            value = single(field.name, fields.get(field.name))
            if value is not None:
                read[field.name] = from_json(field, value)
        for name, limit in _NEW_TOKENS.items():
            if fields.get(name) is not None:
                if not isinstance(fields[name], int) or isinstance(fields[name], bool) or fields[name] < 0:
                    raise InputError(f"{name} is {shown(fields[name])}; it must be a whole number that is at least 0.")
                read[limit] = fields[name] + 1  # the start token
        return cls(**read)

    def check_fits(self, model: TranslationConfig) -> None:
        """Raises `InputError` where a token or a length is more than a model has."""
        for name in (*_TOKENS, "forced_bos_token_id", "forced_eos_token_id"):
            check_token(name, getattr(self, name), model.vocab_size)
        positions = model.decoder.max_position_embeddings
        if self.max_length > positions:
            raise InputError(
                f"max_length is {self.max_length}, but the decoder has {positions} positions (max_position_embeddings)."
                " Set a lower one."
            )

    def to_huggingface(self) -> dict[str, Any]:
        """The contents of a `generation_config.json` with which Transformers generates the same."""
        return dataclasses.asdict(self)


def _check_early_stopping(value: Any) -> None:
    if not isinstance(value, bool) and value != "never":
        raise InputError(f"early_stopping is {shown(value)}; it must be true, false or 'never'.")
