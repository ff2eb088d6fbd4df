"""How the parameters of a network are updated: the optimizer, the state that it starts from, and the training step."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import jax

from xtremes_jax.arguments import Arguments
from xtremes_jax.assembly import Network
from xtremes_jax.models import decays
from xtremes_jax.training import sharding
from xtremes_jax.training.optimizer import make_optimizer, make_schedule, warmup_step_count, with_latecomers
from xtremes_jax.training.state import TrainState, create_state
from xtremes_jax.training.step import make_train_step

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Optimization:
    """How the parameters of a network are updated, and the state that this starts from."""

    optimizer: Any
    learning_rate: Any
    """Updates done -> learning rate."""
    abstract_state: TrainState
    """Shape, type and sharding of each array of the state: what a checkpoint is restored to."""
    create: Any
    """`(trainable, frozen) -> TrainState`, pure: the state before the first step."""

    @property
    def state_sharding(self) -> TrainState:
        """Sharding of each array of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    @property
    def optimizer_bytes(self) -> int:
        """Of the optimizer's state: the moments of what is trained, over all devices once."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.abstract_state.optimizer))

    def first_state(self, network: Network) -> TrainState:
        """The state before the first step. The network's own parameters become part of it and are gone afterwards."""
        make = jax.jit(self.create, out_shardings=self.state_sharding, donate_argnums=(0, 1))
        return make(network.trainable, network.frozen)


def make_step(arguments: Arguments, network: Network, optimization: Optimization) -> Any:
    """The jitted training step of these arguments; XLA compiles it once for each shape of a batch."""
    training = arguments.training
    return make_train_step(
        graphdef=network.graphdef,
        objective=network.objective,
        optimizer=optimization.optimizer,
        schedule=optimization.learning_rate,
        max_grad_norm=training.max_grad_norm,
        accumulation=training.gradient_accumulation_steps,
        scale_loss=training.fp16,
        seed=training.seed,
        mesh=network.mesh,
        state_sharding=optimization.state_sharding,
        late=network.late,
        late_updates=arguments.model.freeze_encoder_steps,
    )


def make_optimization(arguments: Arguments, network: Network, total_steps: int) -> Optimization:
    """AdamW with the flags' schedule; its moments lie where their parameters do."""
    training = arguments.training
    warmup = warmup_step_count(training.warmup_steps, training.warmup_ratio, total_steps)
    learning_rate = make_schedule(training.lr_scheduler_type, training.learning_rate, warmup, total_steps)
    pause = arguments.model.freeze_encoder_steps

    def adamw(schedule: Any, names: Iterable[str]) -> Any:
        return make_optimizer(
            schedule,
            beta1=training.adam_beta1,
            beta2=training.adam_beta2,
            epsilon=training.adam_epsilon,
            weight_decay=training.weight_decay,
            decay_mask={name: decays(name) for name in names},
        )

    optimizer = adamw(learning_rate, [name for name in network.trainable if name not in network.late])
    if network.late:
        # Their optimizer counts their own updates, and the learning rate is that of the whole run's.
        late = adamw(lambda count: learning_rate(count + pause), network.late)
        optimizer = with_latecomers(optimizer, late, network.late, pause)
        if pause < total_steps:
            logger.info("The encoder stays as it is for the first %d of %d updates.", pause, total_steps)
        else:
            logger.warning(
                "--freeze_encoder_steps %d is the whole run (%d updates): the encoder is never trained.",
                pause, total_steps,
            )  # fmt: skip

    def create(trainable, frozen):
        return create_state(trainable, frozen, optimizer, scale_loss=training.fp16)

    shapes = jax.eval_shape(create, network.trainable, network.frozen)
    abstract_state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.array_sharding(network.mesh, leaf.shape)
        ),
        shapes,
    )
    return Optimization(optimizer, learning_rate, abstract_state, create)
