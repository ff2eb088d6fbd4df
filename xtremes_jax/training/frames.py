"""The frozen front end by itself: audio in, the frames that the training step goes on from out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from xtremes_jax.batch import Batch
from xtremes_jax.training.accumulation import join_micro_batches, split_micro_batches
from xtremes_jax.training.devices import compiler_options
from xtremes_jax.training.sharding import batch_sharding
from xtremes_jax.training.step import join


def make_frames_step(*, graphdef, accumulation: int, mesh: Mesh) -> Callable[..., Array]:
    """Compiles (once for each batch shape) the step `(trainable, frozen, batch) -> [batch, frames, channels] bfloat16`.

    Args:
        graphdef: the model's structure, from `models.split_params`.
        accumulation: micro-batches that each batch is worked off in, as in training, so that it needs no more memory.
        mesh: the device mesh; rows stay on their devices.
    """

    def frames_step(trainable, frozen, batch: Batch) -> Array:
        backbone = join(graphdef, trainable, frozen).backbone

        def extract(part: Batch) -> Array:
            return backbone.extract_frames(part.audio, part.audio_lengths).astype(jnp.bfloat16)

        if accumulation == 1:
            return extract(batch)
        return join_micro_batches(jax.lax.map(extract, split_micro_batches(batch, accumulation)))

    return jax.jit(frames_step, out_shardings=batch_sharding(mesh), compiler_options=compiler_options())
