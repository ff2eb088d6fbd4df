"""Speech encoders with heads or a decoder, in Flax NNX: it knows nothing of datasets, tokenizers or audio."""

from xtremes_jax.models.config import ModelConfig, is_retrieval, label_names
from xtremes_jax.models.convert import (
    Report,
    from_huggingface,
    is_of_language,
    language_part,
    newly_drawn,
    to_huggingface,
)
from xtremes_jax.models.convert_parts import from_encoder_and_decoder
from xtremes_jax.models.ctc_decode import Transcripts, decode_ctc
from xtremes_jax.models.decoder_config import DECODER_PRESETS, DecoderConfig
from xtremes_jax.models.families import FAMILIES, config_class_of, config_from_huggingface
from xtremes_jax.models.generate import Generated, generate, generate_from_hidden
from xtremes_jax.models.generation_config import GenerationConfig
from xtremes_jax.models.lora import Lora, is_factor, merge_factors
from xtremes_jax.models.masking import Randomness
from xtremes_jax.models.model import (
    ModelOutput,
    SpeechModel,
    abstract_model,
    build_model,
    decays,
    flatten_params,
    is_feature_encoder,
    is_fixed,
    is_language_adapter,
    merge,
    path_name,
    split_params,
    unflatten_params,
)
from xtremes_jax.models.presets import PRESETS
from xtremes_jax.models.translation import TranslationModel, TranslationOutput
from xtremes_jax.models.translation_config import TRANSLATION_MODEL_TYPE, TranslationConfig
from xtremes_jax.models.windows import Window, Windowing, windowing

__all__ = [
    "DECODER_PRESETS",
    "DecoderConfig",
    "FAMILIES",
    "Generated",
    "GenerationConfig",
    "Lora",
    "ModelConfig",
    "ModelOutput",
    "PRESETS",
    "Randomness",
    "Report",
    "SpeechModel",
    "TRANSLATION_MODEL_TYPE",
    "Transcripts",
    "TranslationConfig",
    "TranslationModel",
    "TranslationOutput",
    "Window",
    "Windowing",
    "abstract_model",
    "build_model",
    "config_class_of",
    "config_from_huggingface",
    "decays",
    "decode_ctc",
    "flatten_params",
    "from_encoder_and_decoder",
    "from_huggingface",
    "generate",
    "generate_from_hidden",
    "is_factor",
    "is_feature_encoder",
    "is_fixed",
    "is_language_adapter",
    "is_of_language",
    "is_retrieval",
    "label_names",
    "language_part",
    "merge",
    "merge_factors",
    "newly_drawn",
    "path_name",
    "split_params",
    "to_huggingface",
    "unflatten_params",
    "windowing",
]
