"""UniSpeech (Wang et al. 2021) and UniSpeech-SAT (Chen et al. 2022): wav2vec 2.0's network, trained otherwise."""

from dataclasses import dataclass
from typing import ClassVar

from xtremes_jax.models.config import ADAPTER_FIELDS, ModelConfig


@dataclass(frozen=True)
class UniSpeechConfig(ModelConfig):
    """One UniSpeech model; field names and defaults are those of `transformers.UniSpeechConfig`."""

    model_type: ClassVar[str] = "unispeech"
    family: ClassVar[str] = "UniSpeech"
    architecture: ClassVar[str] = "UniSpeech"
    root: ClassVar[str] = "unispeech"
    lacking: ClassVar[tuple[str, ...]] = ADAPTER_FIELDS


@dataclass(frozen=True)
class UniSpeechSatConfig(ModelConfig):
    """One UniSpeech-SAT model; field names and defaults are those of `transformers.UniSpeechSatConfig`."""

    model_type: ClassVar[str] = "unispeech-sat"
    family: ClassVar[str] = "UniSpeech-SAT"
    architecture: ClassVar[str] = "UniSpeechSat"
    root: ClassVar[str] = "unispeech_sat"
    always_has_mask_vector: ClassVar[bool] = True
    lacking: ClassVar[tuple[str, ...]] = ADAPTER_FIELDS
