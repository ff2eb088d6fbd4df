"""Whether the fields of a speech encoder's configuration are of their types, of sane sizes, and fit together."""

import dataclasses
from typing import Any

from xtremes_jax.errors import InputError
from xtremes_jax.models.config_fields import LARGEST_SIZE, check_field, check_parameters, shown

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu", "swish")
"""Values of `hidden_act` and `feat_extract_activation` that are known here; `gelu` is the exact one (erf)."""

_RATES = (
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "final_dropout",
    "layerdrop",
)


def check_config(config: Any) -> None:
    """Raises `InputError` where a field of a `ModelConfig` is of the wrong type or size, or two do not fit together."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        check_field(field, value)
        if field.name in config.lacking and value != field.default:
            raise InputError(
                f"{field.name} is {shown(value)}, but {config.family} has no such part in Transformers, which could "
                f"not load the model: it must stay {shown(field.default)}. Drop the setting, or choose another encoder."
            )
    if not len(config.conv_dim) == len(config.conv_kernel) == len(config.conv_stride) > 0:
        raise InputError(
            f"conv_dim {shown(config.conv_dim)}, conv_kernel {shown(config.conv_kernel)} and conv_stride "
            f"{shown(config.conv_stride)} "
            "must be lists of one length: one number for each convolution."
        )
    if config.min_samples > LARGEST_SIZE:
        raise InputError(
            f"conv_kernel {shown(config.conv_kernel)} and conv_stride {shown(config.conv_stride)} make a frame of "
            f"{config.min_samples:.3g} samples, which is over a minute. Check them."
        )
    check_parameters(config.num_parameters)
    if config.feat_extract_norm not in ("group", "layer"):
        raise InputError(f"feat_extract_norm is {shown(config.feat_extract_norm)}; only 'group' and 'layer' exist.")
    for name in ("hidden_act", "feat_extract_activation"):
        if getattr(config, name) not in ACTIVATIONS:
            raise InputError(f"{name} is {shown(getattr(config, name))}; known are {', '.join(ACTIVATIONS)}.")
    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if config.hidden_size % getattr(config, name):
            raise InputError(f"{name} ({getattr(config, name)}) does not divide hidden_size ({config.hidden_size}).")
    for name in _RATES:
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; it must be at least 0 and less than 1.")
    for name in ("mask_time_prob", "mask_feature_prob"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{name} is {getattr(config, name)}; it must be from 0 to 1.")
    if config.layer_norm_eps <= 0 or config.initializer_range < 0:
        raise InputError(
            f"layer_norm_eps is {config.layer_norm_eps} and initializer_range {config.initializer_range}; the first "
            "must be greater than 0, the second at least 0."
        )
    if config.add_adapter and config.head in ("classification", "retrieval"):
        raise InputError(
            "The configuration has add_adapter true, and Transformers has no sequence classification with an adapter. "
            "Choose a checkpoint without it."
        )
    if config.head not in ("ctc", "classification", "retrieval", None):
        raise InputError(f"head is {config.head!r}; it must be 'ctc', 'classification' or 'retrieval'.")
