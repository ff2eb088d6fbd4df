"""Low-rank factors in the format of PEFT (https://github.com/huggingface/peft), both ways: names, layouts, settings.

What PEFT calls an adapter is an `adapter_config.json` and the tensors of `adapter_model.safetensors`: the factors of
each adapted map, and whole the modules that were trained besides. Its base is an ordinary checkpoint.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from xtremes_jax.errors import InputError
from xtremes_jax.models import tables
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.convert import IN_TRANSLATION, canonical_name, their_names_of_ours
from xtremes_jax.models.lora import Lora, adapted_maps, is_factor
from xtremes_jax.models.model import AnyConfig
from xtremes_jax.models.translation_config import TRANSLATION_MODEL_TYPE
from xtremes_jax.models.weights import Reader, Tensors

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_LARGEST_RANK = 2**16
_LARGEST_ALPHA = 2**32

_PASSED_OVER = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Settings that are looked at below, or that say nothing of what the tensors stand for."""
_DRAWN_ONLY = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base's matrices as they are."""


def to_peft(
    params: Mapping[str, np.ndarray],
    ordinary: Mapping[str, np.ndarray],
    config: AnyConfig,
    lora: Lora,
    unlike_base: Iterable[str],
    base: str,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """An adapter of a trained model: its tensors, and the contents of its adapter_config.json.

    Args:
        params: of the model, by dotted name, the factors among them.
        ordinary: tensors of the checkpoint that it is exported as.
        config: of the model.
        lora: how it was adapted.
        unlike_base: dotted names of the parameters that the base does not hold as they are, factors or not; a map of
            which both kernel and factors are among them is stored whole.
        base: hub id or directory of the checkpoint that it was trained from.
    """
    names = their_names_of_ours(config)
    tensors: dict[str, np.ndarray] = {}
    adapted: list[str] = []
    unlike_base = set(unlike_base)
    for ours in adapted_maps(params):
        if f"{ours}.kernel" in unlike_base:
            continue
        modules = [name.removesuffix(".weight") for name in names[f"{ours}.kernel"]]
        adapted += modules
        for end, factor in ((_A, f"{ours}.lora_A"), (_B, f"{ours}.lora_B")):
            for module, part in zip(modules, np.asarray(params[factor], np.float32), strict=True):
                tensors[f"{_PREFIX}{module}{end}"] = np.ascontiguousarray(part.T)
    whole = [name for ours in sorted(unlike_base) if not is_factor(ours) for name in names.get(ours, ())]
    if tables.EMBEDDING in whole:  # the output is the same tensor in another module, which PEFT copies by itself
        whole.append(tables.TIED_OUTPUT)
        ordinary = {**ordinary, tables.TIED_OUTPUT: ordinary[tables.EMBEDDING]}
    tensors |= {f"{_PREFIX}{name}": ordinary[name] for name in whole}
    modules = {name.removesuffix(".weight") for ours in names.values() for name in ours if name.endswith(".weight")}
    return tensors, {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": _shortest(adapted, modules),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole if "." in name}) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "task_type": None,
        "inference_mode": True,
    }


def _shortest(adapted: list[str], modules: set[str]) -> list[str]:
    """Names that PEFT finds the adapted modules by, and no other: the fewest last parts that no other module ends in.

    Args:
        adapted: full names of the adapted modules.
        modules: those of all modules with weights.
    """
    others = modules - set(adapted)
    found = set()
    for name in adapted:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        found.add(next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)))
    return sorted(found)


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been read, not yet merged with its base."""

    source: str
    """Where it lies, for messages."""
    base: str
    """Hub id or directory of the checkpoint that it belongs to."""
    revision: str | None
    """Of that, on the hub."""
    scale: float
    """What the product of two factors is multiplied with."""
    rank: int


def read_settings(source: str, settings: Mapping[str, Any]) -> Adapter:
    """What an adapter_config.json says.

    Args:
        source: directory or hub id, for messages.
        settings: its contents.

    Raises:
        InputError: it is no LoRA, or one with something that is not implemented, which is named; or its numbers are
            none.
    """

    def refuse(name: str, what: str) -> InputError:
        return InputError(
            f"{source}: adapter_config.json has {name} {shown(settings.get(name))}; {what} Merge it into its base with "
            "PEFT (merge_and_unload, save_pretrained), and name the result."
        )

    kind = settings.get("peft_type")
    if kind != "LORA":
        raise refuse("peft_type", "only LORA can be read.")
    if settings.get("bias", "none") != "none":
        raise refuse("bias", "only adapters that leave biases alone can be read.")
    if settings.get("init_lora_weights", True) not in _DRAWN_ONLY:
        raise refuse("init_lora_weights", "it changes the base's own matrices.")
    for name in ("rank_pattern", "alpha_pattern", *sorted(settings.keys() - _PASSED_OVER)):
        if settings.get(name):
            raise refuse(name, "that is not implemented.")
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base or "\0" in base:
        raise InputError(
            f"{source}: adapter_config.json has base_model_name_or_path {shown(base)}, so nobody knows which model the "
            "adapter belongs to. Write its hub id or directory there."
        )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= _LARGEST_RANK:
        raise InputError(f"{source}: adapter_config.json has r {shown(rank)}; a rank is a whole number from 1 on.")
    if type(alpha) not in (int, float) or not abs(alpha) <= _LARGEST_ALPHA:  # NaN compares false
        raise InputError(
            f"{source}: adapter_config.json has lora_alpha {shown(alpha)}, which is no number up to "
            f"{_LARGEST_ALPHA:,}. Save the adapter again."
        )
    by_root = settings.get("use_rslora")
    if by_root not in (None, True, False):
        raise refuse("use_rslora", "it is either true or false.")
    scale = alpha / (math.sqrt(rank) if by_root else rank)
    return Adapter(source, base, revision if isinstance(revision, str) else None, scale, rank)


def merged_tensors(
    adapter: Adapter, held: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], root: str
) -> Tensors:
    """The tensors of the ordinary checkpoint that base and adapter make together, each made when it is asked for.

    Args:
        adapter: its settings.
        held: its tensors.
        base: those of its base.
        root: what the names of the base's encoder begin with, or lack (`ModelConfig.root`).

    Raises:
        InputError: the adapter holds tensors that are none of an adapter's, that its base has no place for, or two for
            one place; or a factor lacks its other half.
    """
    source = adapter.source
    spelling = {canonical_name(name, root): name for name in base}
    readers = {name: partial(base.__getitem__, name) for name in base}
    made_of: dict[str, str] = {}

    def place(tensor: str, part: str, read: Reader) -> None:
        if (other := made_of.setdefault(tensor, part)) != part:
            raise InputError(f"{source} holds {shown(other)} and {shown(part)}, which are one tensor of its base.")
        readers[tensor] = read

    for name in held:
        if not name.startswith(_PREFIX):
            raise InputError(f"{source} holds {shown(name)}; a PEFT adapter's names begin with {_PREFIX}.")
        module = name.removeprefix(_PREFIX)
        if module.endswith((_A, _B)):
            stem = module.removesuffix(_A).removesuffix(_B)
            other = f"{_PREFIX}{stem}{_B if module.endswith(_A) else _A}"
            weight = spelling.get(canonical_name(f"{stem}.weight", root))
            if other not in held:
                raise InputError(f"{source} holds {name} without {other}. Save the adapter again.")
            if weight is None:
                raise InputError(
                    f"{source} adapts {stem}, which its base {adapter.base} does not hold. Check "
                    "base_model_name_or_path in adapter_config.json."
                )
            place(weight, stem, partial(_merged, adapter, held, stem, base, weight))
        elif "lora_" in module:
            raise InputError(f"{source} holds {shown(name)}, which is no factor of a linear map: it cannot be read.")
        else:
            whole = spelling.get(canonical_name(module, root), module)
            place(whole, module, partial(held.__getitem__, name))
    return Tensors(readers)


def _merged(
    adapter: Adapter, held: Mapping[str, np.ndarray], stem: str, base: Mapping[str, np.ndarray], weight: str
) -> np.ndarray:
    """One matrix `[outputs, inputs]` of the base with its low-rank update, float32."""
    kernel = np.asarray(base[weight]).astype(np.float32)
    first, second = (np.asarray(held[f"{_PREFIX}{stem}{end}"]).astype(np.float64) for end in (_A, _B))
    if kernel.ndim != 2:
        raise InputError(
            f"{adapter.source} adapts {stem}, whose weights in {adapter.base} are {kernel.shape}: only factors of "
            "linear maps can be read. Merge it into its base with PEFT (merge_and_unload, save_pretrained), and name "
            "the result."
        )
    outputs, inputs = kernel.shape
    if first.shape != (adapter.rank, inputs) or second.shape != (outputs, adapter.rank):
        raise InputError(
            f"{adapter.source} has factors of {first.shape} and {second.shape} for {stem}, whose matrix in "
            f"{adapter.base} is {kernel.shape}, and rank {adapter.rank}: they do not belong together. Check "
            "base_model_name_or_path and r in adapter_config.json."
        )
    return (kernel + adapter.scale * (second @ first)).astype(np.float32)


def root_of_config(config: Mapping[str, Any], family_root: str) -> str:
    """What the names of an encoder's tensors begin with, in the checkpoint that a `config.json` describes."""
    return IN_TRANSLATION if config.get("model_type") == TRANSLATION_MODEL_TYPE else family_root


def with_heads(config: Mapping[str, Any], held: Mapping[str, np.ndarray], architecture: str) -> dict[str, Any]:
    """A base's `config.json` with the head that an adapter brings, as the shapes of its tensors say.

    Classes have no names in an adapter: a config.json beside it tells them.

    Raises:
        InputError: a head is no matrix.
    """
    changed = dict(config)
    for head, ending in (("lm_head", "ForCTC"), ("classifier", "ForSequenceClassification")):
        if f"{_PREFIX}{head}.weight" not in held:
            continue
        weight = held[f"{_PREFIX}{head}.weight"]
        if weight.ndim != 2 or not weight.size:  # a file of a few bytes can hold any number of empty rows
            raise InputError(
                f"The adapter's {head}.weight has shape {weight.shape}, which is that of no head. Save it again."
            )
        size = int(weight.shape[0])
        changed["architectures"] = [f"{architecture}{ending}"]
        if head == "lm_head":
            changed["vocab_size"] = size
        elif not isinstance(names := changed.get("id2label"), dict) or len(names) != size:
            changed["id2label"] = {str(index): f"LABEL_{index}" for index in range(size)}
            changed.pop("label2id", None)
    return changed
