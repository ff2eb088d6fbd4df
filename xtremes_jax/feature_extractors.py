"""What a model's repository says of how its audio is prepared: read, made for a new model, and written."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.errors import InputError
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.families import config_class_of
from xtremes_jax.models.weights import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WAVEFORM = "Wav2Vec2FeatureExtractor"
LOG_MEL = "SeamlessM4TFeatureExtractor"
_READS = {WAVEFORM: "the waveform", LOG_MEL: "log-mel features"}
_DEFAULTS: dict[str, dict[str, Any]] = {
    WAVEFORM: {"do_normalize": True, "return_attention_mask": False},
    LOG_MEL: {"padding_value": 0.0, "return_attention_mask": True},
}
"""What holds where a file is silent, as in Transformers."""
_FIXED: dict[str, dict[str, int]] = {WAVEFORM: {}, LOG_MEL: {"feature_size": 80, "num_mel_bins": 80, "stride": 2}}
"""Settings that are implemented with one value alone, which also holds where a file is silent."""


def has_preprocessor(directory: Path) -> bool:
    """Whether a directory has a file that `read_preprocessor` looks for."""
    return any((directory / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))


def read_preprocessor(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model wants done to its audio: `sampling_rate` (Hz), `return_attention_mask`, and of models that read the
    waveform `do_normalize`, of those that read log-mel features `padding_value`.

    Read, as Transformers 5 does, from "feature_extractor" in processor_config.json, else from preprocessor_config.json;
    what neither says has the default of the family's class there; where there is neither file, see `new_preprocessor`.

    Args:
        directory: of the model.
        config: contents of its config.json, which names the family.

    Raises:
        InputError: a file is damaged, asks for other features than the model reads, or for a rate other than 16 kHz.
    """
    processor, extractor = Path(directory) / "processor_config.json", Path(directory) / "preprocessor_config.json"
    found: Any = read_json_object(processor).get("feature_extractor") if processor.is_file() else None
    source = processor
    if found is None:
        source = extractor
        if not extractor.is_file():
            return new_preprocessor(config)
        found = read_json_object(extractor)
    if not isinstance(found, dict):
        raise InputError(f'{source}: "feature_extractor" must be a JSON object.')
    family = config_class_of(config)
    wanted = family.feature_extractor
    kind = found.get("feature_extractor_type", wanted)
    if kind != wanted:
        raise InputError(
            f"{source} asks for {shown(kind)}; models of {family.family} read {_READS[wanted]} ({wanted}) here."
        )
    for key, value in _FIXED[wanted].items():
        if found.get(key, value) != value:
            raise InputError(f"{source}: {key} is {shown(found[key])}; only {value} is supported.")
    settings = _DEFAULTS[wanted] | {"sampling_rate": SAMPLE_RATE}
    settings.update({key: found[key] for key in settings if key in found})
    _check(settings, source)
    return settings


def _check(settings: Mapping[str, Any], source: Path) -> None:
    for key in ("do_normalize", "return_attention_mask"):
        if key in settings and not isinstance(settings[key], bool):
            raise InputError(f"{source}: {key} must be true or false, not {shown(settings[key])}.")
    padding = settings.get("padding_value", 0.0)
    if isinstance(padding, bool) or not isinstance(padding, int | float) or not math.isfinite(padding):
        raise InputError(f"{source}: padding_value must be a number, not {shown(padding)}.")
    if settings["sampling_rate"] != SAMPLE_RATE:
        raise InputError(
            f"{source}: the model reads audio at {shown(settings['sampling_rate'])} Hz; only 16000 Hz is supported."
        )


def new_preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a model of random weights in the shape of a `config.json`."""
    wanted = config_class_of(config).feature_extractor
    settings = _DEFAULTS[wanted] | {"sampling_rate": SAMPLE_RATE}
    if wanted == WAVEFORM:
        # As published models have it: those with a group norm were trained without attention mask.
        settings["return_attention_mask"] = config.get("feat_extract_norm", "group") == "layer"
    return settings


def write_processor(
    directory: Path,
    tokenizer: "PreTrainedTokenizerBase | None",
    preprocessor: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    """The feature extractor alone, and with a tokenizer the processor that joins the two; without PyTorch.

    Args:
        directory: where to.
        tokenizer: of CTC's characters, or of a decoder: the speech encoder's processor takes any.
        preprocessor: as `read_preprocessor` returns it.
        config: contents of config.json, which names the family.
    """
    import transformers

    family = config_class_of(config)
    extractor = getattr(transformers, family.feature_extractor)(**preprocessor)
    if tokenizer is not None:
        getattr(transformers, family.processor)(extractor, tokenizer).save_pretrained(directory)
    # Read by Transformers before 5, and where there is no processor; 5 reads the processor's file first.
    extractor.save_pretrained(directory)
