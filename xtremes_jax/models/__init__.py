"""The wav2vec 2.0 / XLS-R family in JAX and Flax NNX: it knows nothing of datasets, tokenizers or files of audio."""

from xtremes_jax.models.config import PRESETS, ModelConfig, is_retrieval
from xtremes_jax.models.convert import Report, from_huggingface, to_huggingface
from xtremes_jax.models.masking import Randomness
from xtremes_jax.models.model import (
    ModelOutput,
    SpeechModel,
    abstract_model,
    build_model,
    decays,
    flatten_params,
    is_feature_encoder,
    merge,
    path_name,
    split_params,
    unflatten_params,
)

__all__ = [
    "PRESETS",
    "ModelConfig",
    "ModelOutput",
    "Randomness",
    "Report",
    "SpeechModel",
    "abstract_model",
    "build_model",
    "decays",
    "flatten_params",
    "from_huggingface",
    "is_feature_encoder",
    "is_retrieval",
    "merge",
    "path_name",
    "split_params",
    "to_huggingface",
    "unflatten_params",
]
