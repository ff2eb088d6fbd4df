"""Everything a training step reads and writes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from xtremes_jax.training.precision import LossScale


class TrainState(NamedTuple):
    """The whole state of training: with the seed and the data, it decides every later step.

    Parameters are float32, in flat dicts by dotted name; the optimizer holds moments of the trainable ones alone.
    """

    step: Int[Array, ""]
    """Global step: batches consumed, whether or not their update was skipped. Also the loader's position."""
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    optimizer: optax.OptState
    loss_scale: LossScale
    skipped_updates: Int[Array, ""]
    """Updates left out because a gradient or the loss was not finite."""
    nonfinite_streak: Int[Array, ""]
    """How many of the latest steps in a row were left out; 0 after a finite one."""


def create_state(trainable, frozen, optimizer: optax.GradientTransformation, *, scale_loss: bool) -> TrainState:
    """The state before the first step. Pure, so that `jax.eval_shape` gives its shapes."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=frozen,
        optimizer=optimizer.init(trainable),
        loss_scale=LossScale.create(scale_loss),
        skipped_updates=jnp.zeros((), jnp.int32),
        nonfinite_streak=jnp.zeros((), jnp.int32),
    )


def parameter_count(tree) -> int:
    """Number of scalars in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
