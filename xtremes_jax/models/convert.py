"""Names and layouts of parameters, both ways: Hugging Face Transformers <-> ours, strict about both sides."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.model import (
    Params,
    abstract_model,
    build_model,
    flatten_params,
    split_params,
    unflatten_params,
)

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Transform:
    """How an array changes on its way: `ours` turns a Hugging Face array into ours, `theirs` turns it back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


_SAME = Transform(ours=lambda x: x, theirs=lambda x: x)
_LINEAR = Transform(ours=lambda x: x.T, theirs=lambda x: x.T)
"""`[outputs, inputs]` <-> `[inputs, outputs]`."""
_CONV = Transform(ours=lambda x: x.transpose(2, 1, 0), theirs=lambda x: x.transpose(2, 1, 0))
"""`[outputs, inputs, width]` <-> `[width, inputs, outputs]`."""


@dataclass(frozen=True)
class Rule:
    """One line of the table: `{i}` stands for a convolution, `{layer}` for an encoder layer (ours are stacked)."""

    ours: str
    theirs: str
    transform: Transform = _SAME


def _linear(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.kernel", f"{theirs}.weight", _LINEAR), Rule(f"{ours}.bias", f"{theirs}.bias")]


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.scale", f"{theirs}.weight"), Rule(f"{ours}.bias", f"{theirs}.bias")]


_EXTRACTOR = "wav2vec2.feature_extractor.conv_layers"
_PROJECTION = "wav2vec2.feature_projection"
_ENCODER = "wav2vec2.encoder"
_POSITIONS = f"{_ENCODER}.pos_conv_embed"
_WEIGHT_NORM = f"{_POSITIONS}.conv.parametrizations.weight"

TABLE: tuple[Rule, ...] = (
    Rule(f"{_EXTRACTOR}.{{i}}.conv.kernel", f"{_EXTRACTOR}.{{i}}.conv.weight", _CONV),
    Rule(f"{_EXTRACTOR}.{{i}}.conv.bias", f"{_EXTRACTOR}.{{i}}.conv.bias"),
    *_norm(f"{_EXTRACTOR}.{{i}}.layer_norm", f"{_EXTRACTOR}.{{i}}.layer_norm"),
    *_norm(f"{_PROJECTION}.layer_norm", f"{_PROJECTION}.layer_norm"),
    *_linear(f"{_PROJECTION}.projection", f"{_PROJECTION}.projection"),
    Rule("wav2vec2.masked_spec_embed", "wav2vec2.masked_spec_embed"),
    Rule(f"{_POSITIONS}.weight_g", f"{_WEIGHT_NORM}.original0", _CONV),
    Rule(f"{_POSITIONS}.weight_v", f"{_WEIGHT_NORM}.original1", _CONV),
    Rule(f"{_POSITIONS}.bias", f"{_POSITIONS}.conv.bias"),
    *_norm(f"{_ENCODER}.layer_norm", f"{_ENCODER}.layer_norm"),
    *(
        rule
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        for rule in _linear(f"{_ENCODER}.layers.attention.{name}", f"{_ENCODER}.layers.{{layer}}.attention.{name}")
    ),
    *(
        rule
        for name in ("intermediate_dense", "output_dense")
        for rule in _linear(
            f"{_ENCODER}.layers.feed_forward.{name}", f"{_ENCODER}.layers.{{layer}}.feed_forward.{name}"
        )
    ),
    *_norm(f"{_ENCODER}.layers.layer_norm", f"{_ENCODER}.layers.{{layer}}.layer_norm"),
    *_norm(f"{_ENCODER}.layers.final_layer_norm", f"{_ENCODER}.layers.{{layer}}.final_layer_norm"),
    *_linear("lm_head", "lm_head"),
    *_linear("projector", "projector"),
    *_linear("classifier", "classifier"),
    Rule("layer_weights", "layer_weights"),
)
"""Every parameter of every model here, under both names."""

_TEMPERATURE = "logit_scale"
"""The one parameter that is kept in config.json: Transformers' classifier has no tensor for it."""

_HEADS = ("lm_head", "projector", "classifier", "layer_weights")
_PRETRAINING_LEFTOVERS = ("quantizer", "project_q", "project_hid")
_OLD_SPELLINGS = {
    f"{_POSITIONS}.conv.weight_g": f"{_WEIGHT_NORM}.original0",
    f"{_POSITIONS}.conv.weight_v": f"{_WEIGHT_NORM}.original1",
}
_BACKBONE_ROOTS = ("feature_extractor", "feature_projection", "masked_spec_embed", "encoder", "adapter")
_MASK_VECTOR = "wav2vec2.masked_spec_embed"


@dataclass(frozen=True)
class Report:
    """What did not match, by Hugging Face names: a checkpoint that fits exactly leaves all three empty."""

    missing: tuple[str, ...]
    """Parameters that the checkpoint does not hold (or holds for another label set): newly drawn."""
    unexpected: tuple[str, ...]
    """Tensors of the checkpoint that are known to have no place here (pretraining, another head): left out."""
    new_head: tuple[str, ...]
    """Those of `missing` that belong to the head: the model cannot be used before it is fine-tuned."""


@functools.cache
def _rules(config: ModelConfig) -> dict[str, Rule]:
    """Our dotted name -> its rule, for every parameter of a model; `{i}` is filled in, `{layer}` is not.

    Raises:
        KeyError: a parameter has no line in the table (a mistake in this package).
    """
    concrete: dict[str, Rule] = {}
    for rule in TABLE:
        for index in range(len(config.conv_dim) if "{i}" in rule.ours else 1):
            ours = rule.ours.replace("{i}", str(index))
            concrete[ours] = Rule(ours, rule.theirs.replace("{i}", str(index)), rule.transform)
    return {name: concrete[name] for name in _shapes(config) if name != _TEMPERATURE}


@functools.cache
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our dotted name -> shape, without computing anything."""
    _, params = split_params(abstract_model(config))
    return {name: tuple(leaf.shape) for name, leaf in flatten_params(params).items()}


def _their_names(rule: Rule, config: ModelConfig) -> list[str]:
    """The Hugging Face names of one of our parameters: one for each layer if it is stacked."""
    if "{layer}" not in rule.theirs:
        return [rule.theirs]
    return [rule.theirs.replace("{layer}", str(index)) for index in range(config.num_hidden_layers)]


def from_huggingface(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, *, seed: int = 0, replace_head: bool = False
) -> tuple[Params, Report]:
    """Turns the tensors of a Transformers checkpoint into parameters (float32 NumPy arrays).

    Both spellings of weight norm, and names with and without "wav2vec2." in front, are understood. The tensors are
    looked up one by one, so a lazily reading mapping keeps memory at about one copy of the model.

    Args:
        tensors: name -> array of any floating point type (bfloat16 as in `ml_dtypes`).
        config: the model to fill.
        seed: for parameters that the checkpoint does not hold: a head, and `masked_spec_embed`.
        replace_head: whether a head tensor of another shape (another vocabulary or label set) is drawn anew instead of
            refused.

    Raises:
        InputError: a parameter is missing, a tensor is unknown, or a shape differs; the names are listed.
    """
    names = {_canonical(name): name for name in tensors}
    if len(names) < len(tensors):
        twice = sorted(set(tensors) - set(names.values()))
        raise InputError(f"The checkpoint holds these tensors under two names: {_listed(twice)}.")
    params: dict[str, np.ndarray] = {}
    absent: list[str] = []  # our names
    missing: list[str] = []  # their names
    used: set[str] = set()
    for ours, rule in _rules(config).items():
        theirs = _their_names(rule, config)
        found = [name for name in theirs if name in names]
        if len(found) < len(theirs):
            absent.append(ours)
            missing += [name for name in theirs if name not in names]
            continue
        used.update(theirs)
        arrays = [_read(tensors[names[name]], name, rule, ours, config, replace_head) for name in theirs]
        if arrays[0] is None:
            absent.append(ours)
            missing += theirs
        else:
            params[ours] = np.stack(arrays) if "{layer}" in rule.theirs else arrays[0]
    unexpected = sorted(set(names) - used)
    new_head = [name for name in missing if name.split(".")[0] in _HEADS]
    _refuse_mismatch(missing, unexpected, set(names))
    if absent:
        params.update(_newly_drawn(config, seed, absent))
    if config.head == "retrieval":
        params[_TEMPERATURE] = np.float32(config.logit_scale)
    return unflatten_params(params), Report(tuple(missing), tuple(unexpected), tuple(new_head))


def to_huggingface(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Turns parameters into the tensors of a Transformers checkpoint (float32, modern weight-norm spelling).

    The temperature of a retrieval model is no tensor: it goes into the configuration (`ModelConfig.logit_scale`).
    `masked_spec_embed` is left out where both masking probabilities are 0, since Transformers' model has none then.

    Raises:
        InputError: the parameters are not those of this configuration.
    """
    flat = flatten_params(params)
    rules = _rules(config)
    if flat.keys() != _shapes(config).keys():
        wrong = sorted(flat.keys() ^ _shapes(config).keys())
        raise InputError(f"These parameters do not belong to this configuration, or are missing: {_listed(wrong)}.")
    tensors: dict[str, np.ndarray] = {}
    for ours, rule in rules.items():
        array = np.asarray(flat[ours], dtype=np.float32)
        if array.shape != _shapes(config)[ours]:
            raise InputError(f"{ours} has shape {array.shape}; this configuration needs {_shapes(config)[ours]}.")
        parts = list(array) if "{layer}" in rule.theirs else [array]
        for name, part in zip(_their_names(rule, config), parts, strict=True):
            tensors[name] = np.ascontiguousarray(rule.transform.theirs(part))
    if config.mask_time_prob == 0 and config.mask_feature_prob == 0:
        del tensors[_MASK_VECTOR]
    return tensors


def _canonical(name: str) -> str:
    """A checkpoint's name in the spelling of the table."""
    if name.split(".")[0] in _BACKBONE_ROOTS:
        name = f"wav2vec2.{name}"
    return _OLD_SPELLINGS.get(name, name)


def _read(
    tensor: np.ndarray, name: str, rule: Rule, ours: str, config: ModelConfig, replace_head: bool
) -> np.ndarray | None:
    """One tensor in our layout; None if it is a head of another shape that is to be replaced."""
    array = np.asarray(tensor)
    expected = _shapes(config)[ours][1 if "{layer}" in rule.theirs else 0 :]
    in_theirs = rule.transform.theirs(np.broadcast_to(np.float32(0), expected)).shape
    if array.shape == in_theirs:
        return rule.transform.ours(array.astype(np.float32))
    if replace_head and name.split(".")[0] in _HEADS:
        return None
    hint = " To train a new head, choose a new vocabulary or label set." if name.split(".")[0] in _HEADS else ""
    raise InputError(
        f"{name} has shape {tuple(array.shape)} in the checkpoint, and {in_theirs} in the model that its "
        f"configuration describes.{hint}"
    )


def _refuse_mismatch(missing: Iterable[str], unexpected: Iterable[str], held: set[str]) -> None:
    """Raises `InputError` for what is neither a new head, nor the mask vector, nor a known leftover."""
    part_of_head = {name.split(".")[0] for name in held} & set(_HEADS)
    lacking = [
        name
        for name in missing
        if name != _MASK_VECTOR
        # A head may be absent as a whole, or replaced; one that lacks a tensor is a damaged checkpoint.
        and not (name.split(".")[0] in _HEADS and (name in held or name.split(".")[0] not in part_of_head))
    ]
    unknown = [name for name in unexpected if name.split(".")[0] not in (*_HEADS, *_PRETRAINING_LEFTOVERS)]
    if not lacking and not unknown:
        return
    parts = []
    if lacking:
        parts.append(f"lacks {_listed(lacking)}")
    if unknown:
        parts.append(f"holds tensors that this model has no place for: {_listed(unknown)}")
    raise InputError(
        f"The checkpoint {', and it '.join(parts)}. Its config.json and its weights are not of one wav2vec 2.0 model; "
        "check the directory."
    )


def _newly_drawn(config: ModelConfig, seed: int, names: list[str]) -> dict[str, np.ndarray]:
    """Newly initialised parameters of these names; XLA leaves out the drawing of all others."""

    def draw() -> dict[str, jax.Array]:
        _, params = split_params(build_model(config, seed=jax.random.key(seed)))
        flat = flatten_params(params)
        return {name: flat[name] for name in names}

    return {name: np.asarray(array) for name, array in jax.jit(draw)().items()}


def _listed(names: Iterable[str]) -> str:
    """Names for a message: the first few, and how many more."""
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
