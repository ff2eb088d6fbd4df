"""The families of speech encoders: what a `config.json` calls each, its configuration, its modules, its names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.models import data2vec, hubert, sew, unispeech, wavlm
from xtremes_jax.models import wav2vec2_bert as bert
from xtremes_jax.models import wav2vec2_conformer as conformer
from xtremes_jax.models.backbone import Backbone
from xtremes_jax.models.config import Head, ModelConfig
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.naming import Rule
from xtremes_jax.models.tables import BACKBONE


@dataclass(frozen=True)
class Family:
    """One family, which `model_type` of its configuration names."""

    config: type[ModelConfig]
    backbone: type[Backbone]
    table: tuple[Rule, ...] = BACKBONE
    constants: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}
    """Tensors that checkpoints hold and the configuration determines, named as in the table."""


FAMILIES: dict[str, Family] = {
    family.config.model_type: family
    for family in (
        Family(ModelConfig, Backbone),
        Family(hubert.HubertConfig, hubert.Hubert, hubert.TABLE),
        Family(wavlm.WavLMConfig, wavlm.WavLM, wavlm.TABLE),
        Family(unispeech.UniSpeechConfig, Backbone),
        Family(unispeech.UniSpeechSatConfig, Backbone),
        Family(data2vec.Data2VecAudioConfig, data2vec.Data2VecAudio, data2vec.TABLE),
        Family(conformer.Wav2Vec2ConformerConfig, conformer.Wav2Vec2Conformer, conformer.TABLE, conformer.constants),
        Family(sew.SEWConfig, sew.SEW, sew.TABLE),
        Family(bert.Wav2Vec2BertConfig, bert.Wav2Vec2Bert, bert.TABLE),
    )
}
"""All of them. To add one: a file with its configuration, its modules and its table, and a line here."""


def family_of(config: ModelConfig) -> Family:
    """The family that a configuration belongs to."""
    return FAMILIES[config.model_type]


def config_class_of(config: Mapping[str, Any]) -> type[ModelConfig]:
    """The class of the configuration of the speech encoder that a `config.json` describes, alone or with a decoder.

    Where it names no family that is known, that of wav2vec 2.0: what cannot be loaded is refused where it is read.
    """
    speech = config.get("encoder", config)
    model_type = speech.get("model_type") if isinstance(speech, Mapping) else None
    is_known = isinstance(model_type, str) and model_type in FAMILIES
    return FAMILIES[model_type].config if is_known else ModelConfig


def config_from_huggingface(
    config: Mapping[str, Any], *, head: Head | None = None, normalize_waveform: bool = True
) -> ModelConfig:
    """The configuration in a `config.json`, of the family that it names; see `ModelConfig.from_huggingface`.

    Raises:
        InputError: the family is unknown, or has a part that is not implemented.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(f"'{name}' ({family.config.family})" for name, family in FAMILIES.items())
        raise InputError(f"config.json has model_type {shown(model_type)}; what can be loaded is {known}.")
    kind = FAMILIES[model_type].config
    return kind.from_huggingface(config, head=head, normalize_waveform=normalize_waveform)
