"""The training and the evaluation step: pure functions of (state, batch), each under one `jax.jit`."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from xtremes_jax.batch import Batch
from xtremes_jax.models import (
    GenerationConfig,
    Randomness,
    decode_ctc,
    generate_from_hidden,
    merge,
    unflatten_params,
)
from xtremes_jax.models.ctc_windows import for_decoding
from xtremes_jax.training.accumulation import accumulate, split_micro_batches
from xtremes_jax.training.contrastive import LARGEST_LOGIT_SCALE, pair_value_and_grad
from xtremes_jax.training.devices import compiler_options
from xtremes_jax.training.losses import Objective, PairObjective
from xtremes_jax.training.optimizer import clip_by_norm, global_norm
from xtremes_jax.training.sharding import replicated
from xtremes_jax.training.state import TrainState

SHARED_STREAM = 0x7FFFFFFF
"""Folded into a step's key for draws that all rows share; no sample id reaches it."""

NEGATIVES_STREAM = SHARED_STREAM - 1
"""Folded into a step's key for the draw of negatives; no sample id reaches it either."""


class StepMetrics(NamedTuple):
    """Scalars of one training step, left on the devices until they are logged."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    finite: Float[Array, ""]
    nonfinite_streak: Int[Array, ""]


class Prediction(NamedTuple):
    """What evaluation needs of a batch: predicted ids, already on few bytes, and the loss sum."""

    ids: Int[Array, "batch ..."]
    """CTC: `[batch, frames]` token ids, without blanks and from the front on; classification: `[batch]` class ids;
    translation: `[batch, tokens]` token ids of what the model has written."""
    lengths: Int[Array, " batch"]
    """Tokens of each row that count; 1 for classification."""
    loss_sum: Float[Array, ""]
    weight: Float[Array, ""]
    """What the mean loss is the mean over: clips, and in translation tokens."""
    sample_ids: Int[Array, " batch"]
    """Of the batch, in reach of every process: -1 for filler rows."""
    cut_off: Bool[Array, " batch"] | None = None
    """Translation: whether a sentence hit the length limit before its end."""


class Embedded(NamedTuple):
    """What retrieval needs of a batch."""

    embeddings: Float[Array, "batch embedding"]
    sample_ids: Int[Array, " batch"]
    """As in `Prediction`."""


class WindowFrames(NamedTuple):
    """What windows of long recordings are decoded from."""

    frames: Int[Array, "batch frames"] | Float[Array, "batch frames vocabulary"]
    """As `models.ctc_windows.for_decoding` gives them."""
    sample_ids: Int[Array, " batch"]
    """As in `Prediction`; -1 also for a window that could not be read."""


def step_randomness(key, sample_ids: Int[Array, " batch"]) -> Randomness:
    """One key a row, from the step's key and the clip's id.

    A clip's draws depend on neither its place in the batch nor the other rows, so that a global batch gives the same
    result however it is split into micro-batches and over devices.
    """
    rows = jax.vmap(lambda sample_id: jax.random.fold_in(key, sample_id))(sample_ids.astype(jnp.uint32))
    return Randomness(rows=rows, shared=jax.random.fold_in(key, SHARED_STREAM))


def join(graphdef, trainable: dict, frozen: dict):
    """The model with these parameters, which come as flat dicts by dotted name."""
    return merge(graphdef, unflatten_params({**trainable, **frozen}))


def run_model(model, objective: Objective | PairObjective, batch: Batch, randomness: Randomness | None = None):
    """A model's output for a batch; one that translates is given the labels too, for teacher forcing."""
    if isinstance(objective, Objective) and objective.kind == "translation":
        labels = batch.labels, batch.label_lengths
        return model(batch.audio, batch.audio_lengths, *labels, randomness=randomness, frames=batch.frames)
    return model(batch.audio, batch.audio_lengths, randomness=randomness, frames=batch.frames)


def _make_gradients(
    graphdef,
    objective: Objective | PairObjective,
    accumulation: int,
    late: frozenset[str] = frozenset(),
    late_updates: int = 0,
) -> Callable:
    """`(state, batch, key, factor) -> (loss, gradients)`: of the batch's loss sum times `factor`."""
    of_all = _make_all_gradients(graphdef, objective, accumulation)
    if not late:
        return of_all

    def of_others(state: TrainState, batch: Batch, key, factor):
        """Those of the parameters that are not `late`, the others being 0: nothing is computed for these."""
        left = {name: value for name, value in state.trainable.items() if name in late}
        others = {name: value for name, value in state.trainable.items() if name not in late}
        held = state._replace(trainable=others, frozen=state.frozen | left)
        loss, gradients = of_all(held, batch, key, factor)
        return loss, gradients | {name: jnp.zeros_like(value) for name, value in left.items()}

    def of_whom_it_is_time(state: TrainState, batch: Batch, key, factor):
        return jax.lax.cond(_update_count(state) < late_updates, of_others, of_all, state, batch, key, factor)

    return of_whom_it_is_time


def _make_all_gradients(graphdef, objective: Objective | PairObjective, accumulation: int) -> Callable:
    """The same, by all trainable parameters."""

    def forward(trainable, frozen, batch: Batch, key):
        model = join(graphdef, trainable, frozen)
        return run_model(model, objective, batch, step_randomness(key, batch.sample_ids))

    def micro_loss(trainable, frozen, batch: Batch, key, factor):
        return objective.loss_sum(forward(trainable, frozen, batch, key), batch) * factor

    def of_rows(state: TrainState, batch: Batch, key, factor):
        def value_and_grad(shared, part: Batch):
            return jax.value_and_grad(micro_loss)(shared[0], shared[1], part, *shared[2:])

        shared = (state.trainable, state.frozen, key, factor)
        if accumulation == 1:
            return value_and_grad(shared, batch)
        return accumulate(value_and_grad, shared, split_micro_batches(batch, accumulation))

    def of_pairs(state: TrainState, batch: Batch, key, factor):
        def embed(trainable, others, part: Batch):
            output = forward(trainable, others[0], part, others[1])
            return output.logits, output.logit_scale

        def loss_sum(embeddings, logit_scale):
            draw = jax.random.fold_in(key, NEGATIVES_STREAM)
            return objective.loss_sum(embeddings, logit_scale, batch, draw) * factor

        return pair_value_and_grad(embed, loss_sum, state.trainable, (state.frozen, key), batch, accumulation)

    return of_pairs if isinstance(objective, PairObjective) else of_rows


def make_train_step(
    *,
    graphdef,
    objective: Objective | PairObjective,
    optimizer,
    schedule: Callable,
    max_grad_norm: float,
    accumulation: int,
    scale_loss: bool,
    seed: int,
    mesh: Mesh,
    state_sharding: TrainState,
    late: frozenset[str] = frozenset(),
    late_updates: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Compiles (once for each batch shape) the step `(state, batch) -> (state, metrics)`; the state is donated.

    Args:
        graphdef: the model's structure, from `models.split_params`.
        objective: the loss; a `PairObjective` for batches of pairs.
        optimizer: optax transformation; `schedule` is its learning rate, for the log.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        accumulation: micro-batches that each batch is worked off in; the result does not depend on it.
        scale_loss: adapt the loss scale as float16 needs.
        seed: of dropout, SpecAugment and layerdrop.
        mesh: the device mesh.
        state_sharding: sharding of each array of the state; pinned, or the second step would compile again.
        late: names of trainable parameters by which nothing is differentiated in the first
        late_updates: updates; the optimizer leaves them alone meanwhile (`optimizer.with_latecomers`).
    """

    loss_and_gradients = _make_gradients(graphdef, objective, accumulation, late, late_updates)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        scale = state.loss_scale.scale
        factor = scale / objective.weight(batch)
        loss, gradients = loss_and_gradients(state, batch, key, factor)
        loss = loss / scale
        gradients = jax.tree.map(lambda g: g / scale, gradients)
        norm = global_norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        new_state = _update(state, clip_by_norm(gradients, norm, max_grad_norm), finite, optimizer, scale_loss)
        metrics = StepMetrics(
            loss=loss,
            gradient_norm=norm,
            learning_rate=jnp.asarray(schedule(_update_count(state)), jnp.float32),
            finite=finite.astype(jnp.float32),
            nonfinite_streak=new_state.nonfinite_streak,
        )
        return new_state, metrics

    outputs = (state_sharding, replicated(mesh))
    return jax.jit(train_step, donate_argnums=0, out_shardings=outputs, compiler_options=compiler_options())


def _update_count(state: TrainState):
    """Updates done so far: the argument of the learning-rate schedule, which a skipped update does not advance."""
    return state.step - state.skipped_updates


def _update(state: TrainState, gradients, finite, optimizer, scale_loss: bool) -> TrainState:
    """The next state: updated if the gradients are finite, else with the parameters and moments of before."""
    updates, moments = optimizer.update(gradients, state.optimizer, state.trainable)
    trainable = jax.tree.map(jnp.add, state.trainable, updates)
    if "logit_scale" in trainable:
        trainable["logit_scale"] = jnp.minimum(trainable["logit_scale"], LARGEST_LOGIT_SCALE)

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    return TrainState(
        step=state.step + 1,
        trainable=keep(trainable, state.trainable),
        frozen=state.frozen,
        optimizer=keep(moments, state.optimizer),
        loss_scale=state.loss_scale.update(finite) if scale_loss else state.loss_scale,
        skipped_updates=state.skipped_updates + (1 - finite.astype(jnp.int32)),
        nonfinite_streak=jnp.where(finite, 0, state.nonfinite_streak + 1),
    )


def make_embed_step(*, graphdef, mesh: Mesh) -> Callable[..., Embedded]:
    """Compiles (once for each batch shape) the step `(trainable, frozen, batch) -> Embedded`, free of randomness."""

    def embed_step(trainable, frozen, batch: Batch) -> Embedded:
        model = join(graphdef, trainable, frozen)
        return Embedded(model(batch.audio, batch.audio_lengths).logits, batch.sample_ids)

    return jax.jit(embed_step, out_shardings=replicated(mesh), compiler_options=compiler_options())


def make_window_step(*, graphdef, mesh: Mesh, ctc_beams: int = 1) -> Callable[..., WindowFrames]:
    """Compiles the step `(trainable, frozen, batch of windows) -> WindowFrames`, free of randomness."""

    def window_step(trainable, frozen, batch: Batch) -> WindowFrames:
        model = join(graphdef, trainable, frozen)
        logits = model(batch.audio, batch.audio_lengths).logits
        return WindowFrames(for_decoding(logits, ctc_beams), batch.sample_ids)

    return jax.jit(window_step, out_shardings=replicated(mesh), compiler_options=compiler_options())


def make_eval_step(
    *,
    graphdef,
    objective: Objective,
    mesh: Mesh,
    generation: GenerationConfig | None = None,
    ctc_beams: int = 1,
) -> Callable[..., Prediction]:
    """Compiles (once for each batch shape) the step `(trainable, frozen, batch) -> Prediction`, free of randomness.

    Args:
        graphdef: the model's structure, from `models.split_params`.
        objective: the loss; label smoothing, a device of training, is left out.
        mesh: the device mesh.
        generation: how a translation is searched for.
        ctc_beams: of the search for a transcript, as `models.decode_ctc` takes them.
    """
    objective = dataclasses.replace(objective, label_smoothing=0.0)

    def eval_step(trainable, frozen, batch: Batch) -> Prediction:
        model = join(graphdef, trainable, frozen)
        if objective.kind == "translation":
            return _translate(model, objective, batch, generation)
        output = run_model(model, objective, batch)
        if objective.kind == "ctc":
            found = decode_ctc(output.logits, output.logit_lengths, blank=objective.blank, beams=ctc_beams)
            ids, lengths = found.tokens, found.lengths
        else:
            ids = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
            lengths = jnp.ones_like(batch.label_lengths)
        loss_sum, weight = objective.loss_sum(output, batch), objective.count(batch)
        return Prediction(ids, lengths, loss_sum, weight, batch.sample_ids)

    return jax.jit(eval_step, out_shardings=replicated(mesh), compiler_options=compiler_options())


def _translate(model, objective: Objective, batch: Batch, generation: GenerationConfig) -> Prediction:
    """The loss of the reference and the model's own sentence, from one encoding of the speech."""
    hidden, lengths = model.encode(batch.audio, batch.audio_lengths)
    forced = model.force(hidden, lengths, batch.labels, batch.label_lengths)
    written = generate_from_hidden(model, hidden, lengths, generation)
    loss_sum = objective.loss_sum(forced, batch)
    weight = objective.count(batch)
    return Prediction(written.tokens, written.lengths, loss_sum, weight, batch.sample_ids, written.cut_off)
