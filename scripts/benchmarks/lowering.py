"""The training step as `xtremes_jax.train` compiles it, lowered from shapes alone: nothing is drawn or allocated."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.work import LABELS_PER_SECOND
from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.models import (
    DECODER_PRESETS,
    PRESETS,
    ModelConfig,
    TranslationConfig,
    abstract_model,
    decays,
    flatten_params,
    is_feature_encoder,
    split_params,
)
from xtremes_jax.planning.hlo import Collective
from xtremes_jax.training.losses import Objective, PairObjective
from xtremes_jax.training.optimizer import make_optimizer, make_schedule
from xtremes_jax.training.sharding import batch_sharding, tree_sharding
from xtremes_jax.training.state import TrainState, create_state
from xtremes_jax.training.step import make_train_step

HEADS = ("ctc", "classification", "translation", "retrieval")


@dataclass(frozen=True)
class Setting:
    """What is trained, on how large a batch, and how it is spread."""

    config: str = "tiny"
    """One of `PRESETS`."""
    head: str = "ctc"
    """One of `HEADS`."""
    rows: int = 16
    """Clips of the global batch: over all devices, all micro-batches together."""
    seconds: float = 1.0
    """That every clip is padded to."""
    dtype: str = "float32"
    remat: str = "none"
    accumulation: int = 1
    fsdp: int = 1
    """Over how many devices each large parameter is split."""
    freeze_feature_encoder: bool = True
    vocab_size: int = 64
    changes: tuple[tuple[str, Any], ...] = ()
    """Fields of the encoder's configuration that are not the preset's."""

    @property
    def labels(self) -> int:
        """Tokens in a row of labels."""
        if self.head == "ctc":
            return max(1, int(LABELS_PER_SECOND * self.seconds))
        return max(2, int(3 * self.seconds)) if self.head == "translation" else 1

    def model_config(self) -> ModelConfig | TranslationConfig:
        """The architecture with its head or decoder; SpecAugment as in the reference script, no dropout, as there."""
        quiet = dict.fromkeys(
            ("layerdrop", "attention_dropout", "activation_dropout", "feat_proj_dropout", "hidden_dropout"), 0.0
        )
        encoder = dataclasses.replace(
            PRESETS[self.config], num_labels=14, **{**quiet, "final_dropout": 0.0, **dict(self.changes)}
        )
        if self.head != "translation":
            return dataclasses.replace(encoder, head=self.head, vocab_size=self.vocab_size)
        decoder = DECODER_PRESETS[self.config if self.config in DECODER_PRESETS else "mbart_large"]
        return TranslationConfig(encoder=encoder, decoder=decoder, decoder_start_token_id=2)

    def objective(self) -> Objective | PairObjective:
        """The loss of the head."""
        return PairObjective() if self.head == "retrieval" else Objective(self.head)


def abstract_batch(setting: Setting, mesh: Mesh) -> Batch:
    """Shapes of the global batch."""
    rows, sharding = setting.rows, batch_sharding(mesh)

    def array(dtype: Any, *columns: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *columns), dtype, sharding=sharding)

    return Batch(
        audio=array(jnp.int16, int(setting.seconds * SAMPLE_RATE)),
        audio_lengths=array(jnp.int32),
        labels=array(jnp.int32, setting.labels),
        label_lengths=array(jnp.int32),
        weight=array(jnp.float32),
        sample_ids=array(jnp.int32),
    )


@dataclass(frozen=True)
class Network:
    """Structure and abstract state of a run, with what updates it."""

    graphdef: Any
    optimizer: Any
    schedule: Any
    state: TrainState
    """`jax.ShapeDtypeStruct` in place of arrays, with their shardings."""

    @property
    def gradient_bytes(self) -> tuple[int, int]:
        """float32 bytes of the trained parameters that are whole on every device, and of those that are split."""
        whole = sum(leaf.size for leaf in self.state.trainable.values() if leaf.sharding.is_fully_replicated)
        return 4 * whole, 4 * sum(leaf.size for leaf in self.state.trainable.values()) - 4 * whole

    @property
    def frozen_split(self) -> int:
        """Elements of the frozen parameters that are split."""
        return sum(leaf.size for leaf in self.state.frozen.values() if not leaf.sharding.is_fully_replicated)


def abstract_network(setting: Setting, mesh: Mesh) -> Network:
    """The model's structure and the shapes of its training state."""
    dtype = jnp.dtype(setting.dtype)
    graphdef, params = split_params(abstract_model(setting.model_config(), dtype=dtype, remat=setting.remat))
    flat = flatten_params(params)
    frozen = {name: flat[name] for name in flat if setting.freeze_feature_encoder and is_feature_encoder(name)}
    trainable = {name: flat[name] for name in flat if name not in frozen}
    schedule = make_schedule("linear", 3e-4, 500, 10_000)
    mask = {name: decays(name) for name in trainable}
    optimizer = make_optimizer(schedule, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, decay_mask=mask)
    state = jax.eval_shape(
        lambda trainable, frozen: create_state(trainable, frozen, optimizer, scale_loss=dtype == jnp.float16),
        trainable,
        frozen,
    )
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        tree_sharding(mesh, state),
    )
    return Network(graphdef, optimizer, schedule, state)


def train_step(setting: Setting, network: Network, mesh: Mesh) -> Any:
    """The jitted training step, not yet lowered."""
    return make_train_step(
        graphdef=network.graphdef,
        objective=setting.objective(),
        optimizer=network.optimizer,
        schedule=network.schedule,
        max_grad_norm=1.0,
        accumulation=setting.accumulation,
        scale_loss=setting.dtype == "float16",
        seed=42,
        mesh=mesh,
        state_sharding=jax.tree.map(lambda leaf: leaf.sharding, network.state),
    )


def lower_train_step(setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    """The training step on this mesh, ready to be compiled for its devices."""
    network = abstract_network(setting, mesh)
    with jax.set_mesh(mesh):
        return train_step(setting, network, mesh).lower(network.state, abstract_batch(setting, mesh))


def least_sent(
    network: Network, devices: int, fsdp: int, *, compute_bytes: int, micro_batches: int
) -> dict[str, float]:
    """Bytes that each device must send in a step, on rings, if every parameter's gradient is summed in float32.

    Gradients of whole parameters: one all-reduce, 2 (n - 1) / n of their bytes. Split parameters, in every micro-batch:
    gathered for the forward and for the backward pass in the compute dtype (frozen ones for the forward pass alone) and
    their gradients reduce-scattered; then, once, the pieces' sums over the other axis.

    Args:
        devices: of the whole mesh; `fsdp` of them share each split parameter.
        compute_bytes: of an element of the compute dtype.
    """
    whole, split = network.gradient_bytes
    share, others = (fsdp - 1) / fsdp, devices // fsdp
    gathered = (2 * split // 4 + network.frozen_split) * compute_bytes * micro_batches
    reduced = 2 * whole * (devices - 1) / devices
    reduced += split * share * micro_batches + 2 * split / fsdp * (others - 1) / others
    return {"gathered": gathered * share, "reduced": reduced, "total": gathered * share + reduced}


def unexpected(collectives: list[Collective], setting: Setting, network: Network) -> list[Collective]:
    """Those that neither sum a gradient nor gather a parameter that FSDP has split.

    Told by their shapes: a parameter's, that of one of its layers, or of a device's piece. Scalars (weights, norms) are
    summed too; and retrieval's loss compares the embeddings of all rows, which are gathered for that.
    """
    known = _parameter_shapes(network, setting.fsdp)
    embeddings = setting.rows * 14 if setting.head == "retrieval" else 1

    def is_expected(collective: Collective) -> bool:
        kinds = ("all-reduce", "reduce-scatter") + (("all-gather",) if setting.fsdp > 1 else ())
        parameters = collective.kind in kinds and all(
            array.dtype in ("f32", "bf16", "f16") and (array.elements == 1 or _sizes(array.dimensions) in known)
            for array in collective.arrays
        )
        return parameters or all(array.elements <= embeddings for array in collective.arrays)

    return [collective for collective in collectives if not is_expected(collective)]


def _parameter_shapes(network: Network, fsdp: int) -> set[tuple[int, ...]]:
    shapes = set()
    for name, leaf in {**network.state.trainable, **network.state.frozen}.items():
        whole = [leaf.shape] + ([leaf.shape[1:]] if ".layers." in name else [])
        if leaf.ndim == 3:  # a convolution's kernel, whose gradient is one matrix product
            whole.append((leaf.shape[0] * leaf.shape[1], leaf.shape[2]))
        pieces = [
            (*shape[:axis], shape[axis] // fsdp, *shape[axis + 1 :])
            for shape in whole
            for axis in range(len(shape))
            if shape[axis] % fsdp == 0
        ]
        shapes |= {_sizes(shape) for shape in whole + pieces}
    return shapes


def _sizes(dimensions: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions in order of size and without ones: XLA transposes and squeezes."""
    return tuple(sorted(size for size in dimensions if size > 1))
