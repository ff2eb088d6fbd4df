"""AdamW and learning-rate schedules with the definitions of Transformers' Trainer."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from xtremes_jax.errors import InputError

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt")


def warmup_step_count(warmup_steps: int | float, warmup_ratio: int | float, total_steps: int) -> int:
    """Number of warm-up steps: a count, or (as Transformers 5 reads `warmup_steps`) a share of the run when below 1."""
    if warmup_steps >= 1:
        return int(warmup_steps)
    return math.ceil(total_steps * (warmup_steps or warmup_ratio))


def make_schedule(name: str, learning_rate: float, warmup: int, total_steps: int) -> Callable:
    """The learning rate of update `count` (0 for the first), as `transformers.optimization.get_scheduler` defines it.

    Args:
        name: one of `SCHEDULES`.
        learning_rate: the peak.
        warmup: updates over which the rate rises from 0; "constant" has none.
        total_steps: updates of the whole run; "linear" and "cosine" reach 0 there.
    """
    if name not in SCHEDULES:
        raise InputError(f"--lr_scheduler_type {name} is not known; choose one of {', '.join(SCHEDULES)}.")

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        rising = count / max(1, warmup)
        progress = jnp.clip((count - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
        if name == "linear":
            after = 1.0 - progress
        elif name == "cosine":
            after = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif name == "inverse_sqrt":
            # Transformers takes 10,000 as the time scale when there is no warm-up.
            timescale = warmup or 10_000
            after = jnp.sqrt(timescale / (count + timescale - warmup))
        else:
            after = jnp.ones_like(count)
        if name == "constant":
            return learning_rate * after
        return learning_rate * jnp.where(count < warmup, rising, after)

    return schedule


def make_optimizer(
    schedule: Callable, *, beta1: float, beta2: float, epsilon: float, weight_decay: float, decay_mask
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) as `torch.optim.AdamW` computes it, decaying where `decay_mask` is true.

    Args:
        schedule: learning rate by number of updates done.
        decay_mask: pytree of bools shaped like the trainable parameters.
    """
    return optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay, mask=decay_mask)


class LateState(NamedTuple):
    """State of an optimizer some of whose parameters join later."""

    done: Int[Array, ""]
    """Updates made."""
    early: Any
    """State of the optimizer of the others."""
    late: Any
    """State of the optimizer of those that join later."""


def with_latecomers(
    early: optax.GradientTransformation, late: optax.GradientTransformation, names: frozenset[str], updates: int
) -> optax.GradientTransformation:
    """Two optimizers of a flat dict of parameters; the second one's are as if they had no gradient at first.

    As PyTorch's optimizers treat a parameter whose `grad` is None: neither moments nor decay nor a count of updates,
    until there is one.

    Args:
        early: of the other parameters.
        late: of those that join later; its schedule is given updates since then.
        names: of those.
        updates: that are made without them.
    """

    def split(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            {name: value for name, value in tree.items() if name not in names},
            {name: value for name, value in tree.items() if name in names},
        )

    def init(parameters: dict[str, Any]) -> LateState:
        now, later = split(parameters)
        return LateState(jnp.zeros((), jnp.int32), early.init(now), late.init(later))

    def update(gradients: dict[str, Any], state: LateState, parameters: dict[str, Any]) -> tuple[Any, LateState]:
        (now, later), (of_now, of_later) = split(gradients), split(parameters)
        changes, moments = early.update(now, state.early, of_now)
        late_changes, late_moments = late.update(later, state.late, of_later)
        joined = state.done >= updates

        def unless_too_early(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(joined, a, b), new, old)

        late_changes = unless_too_early(late_changes, jax.tree.map(jnp.zeros_like, late_changes))
        late_moments = unless_too_early(late_moments, state.late)
        return changes | late_changes, LateState(state.done + 1, moments, late_moments)

    return optax.GradientTransformation(init, update)


def global_norm(gradients) -> Float[Array, ""]:
    """Euclidean norm over all gradients, in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradients)))


def clip_by_norm(gradients, norm: Float[Array, ""], max_norm: float):
    """Scales gradients down to `max_norm`, by `torch.nn.utils.clip_grad_norm_`'s rule; 0 or less leaves them alone."""
    if max_norm <= 0:
        return gradients
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * factor, gradients)
