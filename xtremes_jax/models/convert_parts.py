"""A translation model's parameters from two checkpoints: a speech encoder and an mBART decoder."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.models.convert import (
    HEADS,
    IN_TRANSLATION,
    PRETRAINING_LEFTOVERS,
    Report,
    canonical_name,
    check_tied,
    fill,
    is_implied,
    newly_drawn,
    refuse,
    their_names,
)
from xtremes_jax.models.model import Params, unflatten_params
from xtremes_jax.models.tables import EMBEDDING
from xtremes_jax.models.translation_config import TranslationConfig
from xtremes_jax.models.weights import Tensors

_DECODER_SPELLINGS = ("model.decoder.", "decoder.")
_SHARED = ("model.decoder.embed_tokens.weight", "decoder.embed_tokens.weight", "model.shared.weight", "shared.weight")
_EMBEDDINGS = (*_SHARED, "lm_head.weight", "model.encoder.embed_tokens.weight", "encoder.embed_tokens.weight")
"""Names of the one table of tokens in mBART checkpoints, of which a file holds one or several."""
_LEFT_OUT = ("model.encoder.", "encoder.", "final_logits_bias")
"""What begins the names of mBART's tensors that its decoder alone has no use for."""
_NEW_PARTS = ("encoder.adapter.", "enc_to_dec_proj.")
_CROSS_ATTENTION = ".encoder_attn"


def from_encoder_and_decoder(
    encoder: Mapping[str, np.ndarray], decoder: Mapping[str, np.ndarray], config: TranslationConfig, *, seed: int = 0
) -> tuple[Params, Report]:
    """Parameters (float32 NumPy arrays) to start a translation model from.

    Args:
        encoder: tensors of any checkpoint of the encoder's family: pretraining leftovers and heads are left out.
        decoder: tensors of `MBartForConditionalGeneration` (its text encoder is left out), `MBartModel` or
            `MBartForCausalLM`.
        config: the model to fill.
        seed: for what neither holds, each as a whole: the adapter, the projection between the widths, cross-attention
            with its norm, and `masked_spec_embed`.

    Returns:
        The parameters, and a report under the joint model's names: `missing` was drawn anew. `unexpected` names what
        was left out as the checkpoints spell it.

    Raises:
        InputError: a parameter is missing, a tensor is unknown, or a shape differs; the names are listed.
    """
    readers, left_out, root = {}, [], config.encoder.root
    for name in encoder:
        canonical = canonical_name(name, root)
        if canonical.split(".")[0] in (*HEADS, *PRETRAINING_LEFTOVERS):
            left_out.append(name)
        elif canonical.startswith(f"{root}."):
            ours = f"{IN_TRANSLATION}.{canonical.removeprefix(f'{root}.')}"
            if not is_implied(ours, config):
                _add(readers, ours, encoder, name)
        else:
            refuse([], [name])
    embeddings = [name for name in _EMBEDDINGS if name in decoder]
    if embeddings:
        check_tied(decoder, embeddings)
        _add(readers, EMBEDDING, decoder, embeddings[0])
    for name in decoder:
        stem = next((prefix for prefix in _DECODER_SPELLINGS if name.startswith(prefix)), None)
        if name in _EMBEDDINGS:
            continue
        if stem is not None:
            _add(readers, f"decoder.model.decoder.{name.removeprefix(stem)}", decoder, name)
        elif name.startswith(_LEFT_OUT):
            left_out.append(name)
        else:
            refuse([], [name])
    tensors = Tensors(readers)
    params, absent, missing = fill(tensors, {name: name for name in tensors}, config)
    known = set(their_names(config))
    refuse(
        [name for name in missing if not _may_be_new(name, tensors)],
        sorted(name for name in tensors if name not in known and not _is_dropped_adapter(name, config)),
    )
    params.update(newly_drawn(config, seed, absent))
    left_out += sorted(name for name in tensors if name not in known)
    return unflatten_params(params), Report(tuple(missing), tuple(left_out), ())


def _add(readers: dict, name: str, tensors: Mapping[str, np.ndarray], source: str) -> None:
    if name in readers:
        raise InputError(f"The checkpoint holds {source} under two names.")
    readers[name] = partial(tensors.__getitem__, source)


def _may_be_new(name: str, held: Mapping[str, np.ndarray]) -> bool:
    """Whether an absent tensor belongs to a part that may be drawn anew, and of which nothing is there."""
    if name == f"{IN_TRANSLATION}.masked_spec_embed":
        return True
    if _CROSS_ATTENTION in name:
        return not any(_CROSS_ATTENTION in other for other in held)
    part = next((part for part in _NEW_PARTS if name.startswith(part)), None)
    return part is not None and not any(other.startswith(part) for other in held)


def _is_dropped_adapter(name: str, config: TranslationConfig) -> bool:
    """Whether a tensor is of an adapter that the model was configured without."""
    return name.startswith("encoder.adapter.") and not config.encoder.add_adapter
