"""Compute dtypes and the dynamic loss scale of float16."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def compute_dtype(*, fp16: bool, bf16: bool):
    """The dtype of activations and matrix products; parameters, optimizer state and losses stay float32."""
    return jnp.float16 if fp16 else jnp.bfloat16 if bf16 else jnp.float32


class LossScale(NamedTuple):
    """Factor on the loss that keeps float16 gradients above the smallest representable number.

    The rule and constants of `torch.amp.GradScaler`: start at 65536, double after 2000 finite steps in a row, halve
    after a step that was not finite (Micikevicius et al. 2018, section 3.2), but never below 1.
    """

    scale: Float[Array, ""]
    finite_steps: Int[Array, ""]

    @classmethod
    def create(cls, enabled: bool) -> "LossScale":
        """A scale of 65536 for float16; a constant 1 otherwise."""
        return cls(jnp.asarray(65536.0 if enabled else 1.0, jnp.float32), jnp.zeros((), jnp.int32))

    def update(self, finite: Bool[Array, ""], growth_interval: int = 2000) -> "LossScale":
        """The scale for the next step, given whether this step's gradients were all finite."""
        grow = finite & (self.finite_steps + 1 >= growth_interval)
        scale = jnp.where(finite, jnp.where(grow, self.scale * 2.0, self.scale), self.scale * 0.5)
        finite_steps = jnp.where(finite & ~grow, self.finite_steps + 1, 0)
        return LossScale(jnp.maximum(scale, 1.0), finite_steps)
