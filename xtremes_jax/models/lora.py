"""Low-rank adaptation (LoRA, Hu et al. 2021): what an encoder's linear maps learn while they stay as they are.

A map gives `x W + b + (x A) B · alpha / rank`, with A `[inputs, rank]` and B `[rank, outputs]` in place of an update of
its whole matrix: gradients and moments are those of A and B alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from xtremes_jax.errors import InputError
from xtremes_jax.models.layers import Linear, uniform_initializer

ATTENTION_AND_FEED_FORWARD = (
    "q_proj", "k_proj", "v_proj", "out_proj",
    "linear_q", "linear_k", "linear_v", "linear_out",
    "intermediate_dense", "output_dense",
)  # fmt: skip
"""What the linear maps of attention and feed-forward are called, in any family: those that are adapted by default."""

_A, _B = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class Lora:
    """Which linear maps of an encoder's layers are adapted, and how."""

    rank: int
    """Columns of A, and rows of B."""
    alpha: float
    """What the low-rank product is multiplied with, times the rank."""
    targets: tuple[str, ...] = ()
    """Last parts of the maps' names; empty for attention and feed-forward."""

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        return self.alpha / self.rank


def adapt(layers: nnx.Module, lora: Lora, rngs: nnx.Rngs) -> None:
    """Gives linear maps of stacked layers their factors, with which they compute what they did.

    B is zeros, and A uniform in `±1 / sqrt(inputs)`: as PEFT draws them, by Kaiming's distribution with the slope
    `sqrt(5)`.

    Raises:
        InputError: the layers have no linear map of a name that is asked for.
    """
    maps: dict[str, list[Linear]] = {}
    for path, module in nnx.iter_modules(layers):
        if isinstance(module, Linear):
            maps.setdefault(str(path[-1]), []).append(module)
    usual = [name for name in maps if name in ATTENTION_AND_FEED_FORWARD]
    for name in lora.targets or usual:
        if name not in maps:
            raise InputError(
                f"--lora_targets {name}: this encoder's layers have no such linear map. They have "
                f"{', '.join(sorted(maps))}."
            )
        for linear in maps[name]:
            *layer, inputs, outputs = linear.kernel.shape
            draw = uniform_initializer(inputs**-0.5)
            linear.lora_A = nnx.Param(draw(rngs.params(), (*layer, inputs, lora.rank), jnp.float32))
            linear.lora_B = nnx.Param(jnp.zeros((*layer, lora.rank, outputs), jnp.float32))
            linear.lora_scale = lora.scale


def is_factor(name: str) -> bool:
    """Whether a parameter, by its dotted name, is an A or a B."""
    return name.endswith((_A, _B))


def adapted_maps(names: Any) -> list[str]:
    """The dotted names of the linear maps that have factors, in order."""
    return [name.removesuffix(_A) for name in names if name.endswith(_A)]


def merge_factors(params: Mapping[str, np.ndarray], lora: Lora) -> dict[str, np.ndarray]:
    """The parameters of the ordinary model that computes the same, by dotted name: `W + A B · alpha / rank`.

    The products are summed in float64, so that nothing but the last rounding to float32 is lost.
    """
    merged = {name: value for name, value in params.items() if not is_factor(name)}
    for name in adapted_maps(params):
        first, second = (np.asarray(params[f"{name}{end}"], np.float64) for end in (_A, _B))
        kernel = np.array(params[f"{name}.kernel"], np.float32)
        for layer in np.ndindex(kernel.shape[:-2]):  # one by one: a stack in float64 would be twice the model
            kernel[layer] += lora.scale * (first[layer] @ second[layer])
        merged[f"{name}.kernel"] = kernel
    return merged
