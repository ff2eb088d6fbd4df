"""The parts of a training step, each as a function of shapes, to be compiled for a TPU that nobody holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from benchmarks.lowering import Setting, abstract_network, lower_train_step
from xtremes_jax.batch import SAMPLE_RATE
from xtremes_jax.models.encoder import EncoderLayer
from xtremes_jax.models.frontend import FeatureExtractor, FeatureProjection, prepare_waveform
from xtremes_jax.models.layers import linear
from xtremes_jax.models.positional import PositionalConvolution
from xtremes_jax.training.losses import ctc_loss_sum
from xtremes_jax.training.optimizer import clip_by_norm, global_norm
from xtremes_jax.training.sharding import make_mesh

PARTS = ("front end", "projection", "positional convolution", "encoder layer", "CTC head and loss", "optimizer")


class Part(NamedTuple):
    """A function, the shapes that it is given, and how often a step runs it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    times: int = 1
    donated: tuple[int, ...] = ()

    def lower(self, device: Any) -> jax.stages.Lowered:
        """For one device."""
        sharding = SingleDeviceSharding(device)
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), self.arguments
        )
        return jax.jit(self.function, donate_argnums=self.donated).lower(*placed)


def make_part(name: str, setting: Setting, *, gradient: bool, device: Any) -> Part:
    """One of `PARTS`: its forward pass, or forward pass and gradient by parameters and input together.

    The gradient is pulled back from an array of the output's shape, as it comes from the parts behind. The encoder
    layer is one of all, as the step scans them. The optimizer (norm, clipping, AdamW) has no forward pass.
    """
    if name == "optimizer":
        return _optimizer(setting, device)
    lengths = jax.ShapeDtypeStruct((setting.rows,), jnp.int32)

    def build(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, Any]:
        graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        return graphdef, nnx.to_pure_dict(state)

    make, run, x, times = _makers(setting, lengths)[name]
    graphdef, params = build(make)

    def forward(params: Any, x: jax.Array, lengths: jax.Array) -> jax.Array:
        return run(nnx.merge(graphdef, params), x, lengths)

    if not gradient:
        return Part(forward, (params, x, lengths), times)
    output = jax.eval_shape(forward, params, x, lengths)
    by_input = jnp.issubdtype(x.dtype, jnp.floating)

    def pull(params: Any, x: jax.Array, lengths: jax.Array, upstream: jax.Array) -> Any:
        if by_input:
            y, back = jax.vjp(lambda params, x: forward(params, x, lengths), params, x)
        else:
            y, back = jax.vjp(lambda params: forward(params, x, lengths), params)
        return y, back(upstream)

    return Part(pull, (params, x, lengths, output), times)


def _makers(setting: Setting, lengths: jax.ShapeDtypeStruct) -> dict[str, tuple[Callable, Callable, Any, int]]:
    """Part -> what makes its module, what runs it, its input, and how often a step does."""
    config, dtype = setting.model_config(), jnp.dtype(setting.dtype)
    samples = int(setting.seconds * SAMPLE_RATE)
    frames = config.num_frames(samples)

    def rows(features: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((setting.rows, frames, features), dtype)

    settings = {"dtype": dtype}
    return {
        "front end": (
            lambda rngs: FeatureExtractor(config, remat=False, rngs=rngs, **settings),
            lambda model, audio, lengths: model(prepare_waveform(audio, lengths, normalize=True), lengths),
            jax.ShapeDtypeStruct((setting.rows, samples), jnp.int16),
            1,
        ),
        "projection": (
            lambda rngs: FeatureProjection(config, rngs=rngs, **settings),
            lambda model, x, lengths: model(x, None),
            rows(config.conv_dim[-1]),
            1,
        ),
        "positional convolution": (
            lambda rngs: PositionalConvolution(config, rngs=rngs, **settings),
            lambda model, x, lengths: model(x),
            rows(config.hidden_size),
            1,
        ),
        "encoder layer": (
            lambda rngs: EncoderLayer(config, rngs=rngs, **settings),
            lambda model, x, lengths: model(x, lengths, None),
            rows(config.hidden_size),
            config.num_hidden_layers,
        ),
        "CTC head and loss": (
            lambda rngs: linear(
                config, config.hidden_size, config.vocab_size, rngs=rngs, output_dtype=jnp.float32, **settings
            ),
            lambda model, x, lengths: _ctc(model, x, lengths, setting),
            rows(config.hidden_size),
            1,
        ),
    }


def _ctc(head: nnx.Module, x: jax.Array, lengths: jax.Array, setting: Setting) -> jax.Array:
    """The loss on labels that depend on nothing the compiler knows."""
    labels = jnp.broadcast_to(lengths[:, None] + jnp.arange(setting.labels), (x.shape[0], setting.labels))
    return ctc_loss_sum(
        head(x).astype(jnp.float32), lengths, labels % setting.vocab_size, lengths % (setting.labels + 1),
        jnp.ones(x.shape[0]), blank=0, reduction="mean", zero_infinity=False,
    )  # fmt: skip


def _optimizer(setting: Setting, device: Any) -> Part:
    network = abstract_network(setting, make_mesh(1, [device]))

    def update(trainable: Any, moments: Any, gradients: Any) -> Any:
        gradients = clip_by_norm(gradients, global_norm(gradients), 1.0)
        updates, moments = network.optimizer.update(gradients, moments, trainable)
        return jax.tree.map(jnp.add, trainable, updates), moments

    state = network.state
    return Part(update, (state.trainable, state.optimizer, state.trainable), donated=(0, 1, 2))


def lower_whole_step(setting: Setting, device: Any) -> jax.stages.Lowered:
    """The training step of one device."""
    return lower_train_step(setting, make_mesh(1, [device]))
