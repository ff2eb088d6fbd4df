"""Names and layouts of parameters, both ways: Hugging Face Transformers <-> ours, strict about both sides."""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.models import tables
from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.families import family_of
from xtremes_jax.models.lora import Lora
from xtremes_jax.models.model import (
    AnyConfig,
    Params,
    abstract_model,
    build_model,
    flatten_params,
    is_language_adapter,
    split_params,
    unflatten_params,
)
from xtremes_jax.models.naming import Rule
from xtremes_jax.models.translation_config import TranslationConfig

_NAMES_SHOWN = 20

_TEMPERATURE = "logit_scale"
"""The one parameter that is kept in config.json: Transformers' classifier has no tensor for it."""

HEADS = ("lm_head", "projector", "classifier", "layer_weights")
PRETRAINING_LEFTOVERS = (
    "quantizer", "project_q", "project_hid", "ctc_proj", "speaker_proj", "label_embeddings_concat",
    "layer_norm_for_extract",
)  # fmt: skip
BATCHES_SEEN = ".num_batches_tracked"
"""Ending of the tensors in which PyTorch's batch norms count, and which nothing reads."""
_BACKBONE_PARTS = (
    "feature_extractor",
    "feature_projection",
    "masked_spec_embed",
    "encoder",
    "adapter",
    "intermediate_ffn",
)
IN_TRANSLATION = "encoder"
"""Root of the encoder's names in a translation model, whatever its family."""


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
def _rules(config: AnyConfig) -> dict[str, Rule]:
    """Our dotted name -> its rule, for every parameter of a model; `{i}` is filled in, `{layer}` is not.

    Raises:
        KeyError: a parameter has no line in the table (a mistake in this package).
    """
    beside = tables.DECODER if isinstance(config, TranslationConfig) else tables.HEADS
    lines = [rule.below("encoder", root_of(config)) for rule in family_of(_encoder(config)).table]
    table = {rule.ours: rule for rule in (*lines, *beside)}
    rules = {}
    for name in _shapes(config):
        if name == _TEMPERATURE:
            continue
        rule = table[re.sub(r"\.\d+\.", ".{i}.", name)]
        index = "".join(re.findall(r"\.(\d+)\.", name))
        rules[name] = Rule(name, rule.theirs.replace("{i}", index), rule.transform)
    return rules


def root_of(config: AnyConfig) -> str:
    """What the Hugging Face names of an encoder's parameters begin with."""
    return IN_TRANSLATION if isinstance(config, TranslationConfig) else config.root


def _encoder(config: AnyConfig) -> ModelConfig:
    return config.encoder if isinstance(config, TranslationConfig) else config


def is_implied(name: str, config: AnyConfig) -> bool:
    """Whether a tensor, by its canonical name, is stored beside the parameters and none of them: a constant, or how
    many batches a batch norm has seen."""
    return name.endswith(BATCHES_SEEN) or name in _constants(config)


@functools.cache
def _constants(config: AnyConfig) -> dict[str, np.ndarray]:
    """Tensors that the configuration determines, under their Hugging Face names."""
    found = family_of(_encoder(config)).constants(_encoder(config))
    return {f"{root_of(config)}.{name}": array for name, array in found.items()}


def _mask_vector(config: AnyConfig) -> str:
    """The Hugging Face name of the vector that masked frames are replaced with."""
    return f"{root_of(config)}.masked_spec_embed"


@functools.cache
def _shapes(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    """Our dotted name -> shape, without computing anything."""
    _, params = split_params(abstract_model(config))
    return {name: tuple(leaf.shape) for name, leaf in flatten_params(params).items()}


def _their_names(rule: Rule, config: AnyConfig) -> list[str]:
    """The Hugging Face names of one of our parameters: one for each layer if it is stacked."""
    if "{layer}" not in rule.theirs:
        return [rule.theirs]
    return [rule.theirs.replace("{layer}", str(index)) for index in range(_shapes(config)[rule.ours][0])]


def their_names(config: AnyConfig) -> list[str]:
    """The Hugging Face names of all parameters of a model."""
    return [name for names in their_names_of_ours(config).values() for name in names]


def their_names_of_ours(config: AnyConfig) -> dict[str, list[str]]:
    """Our dotted name of each parameter -> Hugging Face's: one for each layer where ours are stacked."""
    return {ours: _their_names(rule, config) for ours, rule in _rules(config).items()}


def is_of_language(name: str) -> bool:
    """Whether a tensor, by its Hugging Face name, is what a file of one language's adapters holds: with the head."""
    return is_language_adapter(name) or name.startswith("lm_head.")


def language_part(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor that belongs to one language, by Hugging Face name."""
    return {
        name: _their_shape(rule, config)
        for rule in _rules(config).values()
        for name in _their_names(rule, config)
        if is_of_language(name)
    }


def _their_shape(rule: Rule, config: AnyConfig) -> tuple[int, ...]:
    """The shape of a parameter in Hugging Face's layout: of one layer's, if it is stacked."""
    ours = _shapes(config)[rule.ours][1 if "{layer}" in rule.theirs else 0 :]
    return rule.transform.theirs(np.broadcast_to(np.float32(0), ours)).shape


def from_huggingface(
    tensors: Mapping[str, np.ndarray],
    config: AnyConfig,
    *,
    seed: int = 0,
    replace_head: bool = False,
    new_adapters: bool = False,
) -> tuple[Params, Report]:
    """Turns the tensors of a Transformers checkpoint into parameters (float32 NumPy arrays).

    Both spellings of weight norm, and names with and without the root ("wav2vec2.") in front, are understood. The
    tensors are looked up one by one, so a lazily reading mapping keeps memory at about one copy of the model.

    Args:
        tensors: name -> array of any floating point type (bfloat16 as in `ml_dtypes`).
        config: the model to fill.
        seed: for parameters that the checkpoint does not hold: a head, and `masked_spec_embed`.
        replace_head: whether a head tensor of another shape (another vocabulary or label set) is drawn anew instead of
            refused.
        new_adapters: whether adapters in the layers, where the checkpoint holds none at all, are drawn anew.

    Raises:
        InputError: a parameter is missing, a tensor is unknown, or a shape differs; the names are listed.
    """
    heads = () if isinstance(config, TranslationConfig) else HEADS
    held = [name for name in tensors if not is_implied(canonical_name(name, root_of(config)), config)]
    names = {canonical_name(name, root_of(config)): name for name in held}
    if len(names) < len(held):
        twice = sorted(set(held) - set(names.values()))
        raise InputError(f"The checkpoint holds these tensors under two names: {_listed(twice)}.")
    if isinstance(config, TranslationConfig) and tables.TIED_OUTPUT in names:
        output = names.pop(tables.TIED_OUTPUT)
        check_tied(tensors, [names.setdefault(tables.EMBEDDING, output), output])
    params, absent, missing = fill(tensors, names, config, heads if replace_head else ())
    unexpected = sorted(set(names) - set(their_names(config)))
    new_head = [name for name in missing if name.split(".")[0] in heads]
    optional = {_mask_vector(config)}
    if new_adapters and not any(is_language_adapter(name) for name in names):
        optional |= {name for name in missing if is_language_adapter(name)}
    _refuse_mismatch([name for name in missing if name not in optional], unexpected, set(names), heads)
    params.update(newly_drawn(config, seed, absent))
    if not isinstance(config, TranslationConfig) and config.head == "retrieval":
        params[_TEMPERATURE] = np.float32(config.logit_scale)
    return unflatten_params(params), Report(tuple(missing), tuple(unexpected), tuple(new_head))


def fill(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str], config: AnyConfig, may_differ: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Looks up every parameter of a model.

    Args:
        tensors: the checkpoint.
        names: canonical name -> name in the checkpoint.
        config: the model to fill.
        may_differ: roots of names whose tensors count as absent where their shapes differ.

    Returns:
        The parameters found, and those that were not, under our names and under theirs.

    Raises:
        InputError: a shape differs.
    """
    params: dict[str, np.ndarray] = {}
    absent: list[str] = []
    missing: list[str] = []
    for ours, rule in _rules(config).items():
        theirs = _their_names(rule, config)
        found = [name for name in theirs if name in names]
        if len(found) < len(theirs):
            absent.append(ours)
            missing += [name for name in theirs if name not in names]
            continue
        arrays = [_read(tensors[names[name]], name, rule, config, may_differ) for name in theirs]
        if arrays[0] is None:
            absent.append(ours)
            missing += theirs
        else:
            params[ours] = np.stack(arrays) if "{layer}" in rule.theirs else arrays[0]
    return params, absent, missing


def check_tied(tensors: Mapping[str, np.ndarray], names: list[str]) -> None:
    """Raises `InputError` unless the tensors of these names, which are to be one, are equal."""
    first, *others = dict.fromkeys(names)
    for name in others:
        if not np.array_equal(tensors[first], tensors[name]):
            raise InputError(
                f"{first} and {name} differ in the checkpoint: only decoders whose output is tied to their embedding "
                "of tokens are implemented."
            )


def to_huggingface(params: Params, config: AnyConfig) -> dict[str, np.ndarray]:
    """Turns parameters into the tensors of a Transformers checkpoint (float32, modern weight-norm spelling).

    With them go what PyTorch stores though it is no parameter: a counter of each batch norm, at 0, and constants.

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
    counted = [name.removesuffix(".running_var") for name in tensors if name.endswith(".running_var")]
    tensors |= {f"{name}{BATCHES_SEEN}": np.zeros((), np.int64) for name in counted}
    tensors |= _constants(config)
    encoder = _encoder(config)
    if not encoder.always_has_mask_vector and encoder.mask_time_prob == 0 and encoder.mask_feature_prob == 0:
        tensors.pop(_mask_vector(config), None)
    return tensors


def canonical_name(name: str, root: str) -> str:
    """A checkpoint's name in the spelling of the tables; `root` is what its encoder's names begin with, or lack."""
    if root != IN_TRANSLATION and name.split(".")[0] in _BACKBONE_PARTS:
        name = f"{root}.{name}"
    first, _, rest = name.partition(".")
    return f"{root}.{tables.OLD_SPELLINGS.get(rest, rest)}" if first == root and rest else name


def _read(
    tensor: np.ndarray, name: str, rule: Rule, config: AnyConfig, may_differ: tuple[str, ...]
) -> np.ndarray | None:
    """One tensor in our layout; None if it is a head of another shape that is to be replaced."""
    array = np.asarray(tensor)
    in_theirs = _their_shape(rule, config)
    if array.shape == in_theirs:
        return rule.transform.ours(array.astype(np.float32))
    root = name.split(".")[0]
    if root in may_differ:
        return None
    is_head = root in HEADS and not isinstance(config, TranslationConfig)
    hint = " To train a new head, choose a new vocabulary or label set." if is_head else ""
    raise InputError(
        f"{name} has shape {tuple(array.shape)} in the checkpoint, and {in_theirs} in the model that its "
        f"configuration describes.{hint}"
    )


def _refuse_mismatch(missing: Iterable[str], unexpected: Iterable[str], held: set[str], heads: tuple[str, ...]) -> None:
    """Raises `InputError` for what is neither a new head nor a known leftover."""
    part_of_head = {name.split(".")[0] for name in held} & set(heads)
    lacking = [
        name
        for name in missing
        # A head may be absent as a whole, or replaced; one that lacks a tensor is a damaged checkpoint.
        if not (name.split(".")[0] in heads and (name in held or name.split(".")[0] not in part_of_head))
    ]
    leftovers = (*heads, *PRETRAINING_LEFTOVERS) if heads else ()
    refuse(lacking, [name for name in unexpected if name.split(".")[0] not in leftovers])


def refuse(lacking: list[str], unknown: list[str]) -> None:
    """Raises `InputError` where a checkpoint lacks tensors, or holds unknown ones."""
    if not lacking and not unknown:
        return
    parts = []
    if lacking:
        parts.append(f"lacks {_listed(lacking)}")
    if unknown:
        parts.append(f"holds tensors that this model has no place for: {_listed(unknown)}")
    raise InputError(
        f"The checkpoint {', and it '.join(parts)}. Its config.json and its weights are not of one model; check the "
        "directory."
    )


def newly_drawn(config: AnyConfig, seed: int, names: list[str], lora: Lora | None = None) -> dict[str, np.ndarray]:
    """Newly initialised parameters of these names; XLA leaves out the drawing of all others."""
    if not names:
        return {}

    def draw() -> dict[str, jax.Array]:
        _, params = split_params(build_model(config, seed=jax.random.key(seed), lora=lora))
        flat = flatten_params(params)
        return {name: flat[name] for name in names}

    return {name: np.asarray(array) for name, array in jax.jit(draw)().items()}


def _listed(names: Iterable[str]) -> str:
    """Names for a message: the first few, and how many more."""
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
