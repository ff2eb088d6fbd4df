"""WavLM (Chen et al. 2022): wav2vec 2.0's network whose attention has a bias by distance, gated by each query."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from xtremes_jax.errors import InputError
from xtremes_jax.models.attention import SelfAttention
from xtremes_jax.models.backbone import Backbone
from xtremes_jax.models.config import LANGUAGE_ADAPTER, ModelConfig
from xtremes_jax.models.encoder import Encoder, EncoderLayer
from xtremes_jax.models.layers import linear
from xtremes_jax.models.naming import Rule, Transform, layers
from xtremes_jax.models.naming import linear as linear_names
from xtremes_jax.models.relative import by_distance
from xtremes_jax.models.tables import BACKBONE

_GATES = 2
"""Numbers that a query's features become to gate its bias; each is a sum of four."""
_SUMMED = 4


@dataclass(frozen=True)
class WavLMConfig(ModelConfig):
    """One WavLM model; field names and defaults are those of `transformers.WavLMConfig`, the base model's."""

    model_type: ClassVar[str] = "wavlm"
    family: ClassVar[str] = "WavLM"
    architecture: ClassVar[str] = "WavLM"
    root: ClassVar[str] = "wavlm"
    lacking: ClassVar[tuple[str, ...]] = (LANGUAGE_ADAPTER,)
    unsupported: ClassVar[tuple[str, ...]] = (*ModelConfig.unsupported, LANGUAGE_ADAPTER)

    num_buckets: int = 320
    """Buckets of distances, half of them for frames after the query."""
    max_bucket_distance: int = 800
    """Distance in frames from which on all share the last bucket."""

    @property
    def num_of_layer(self) -> int:
        """Elements of the matrices of one Transformer layer: its gates are a linear map too."""
        return super().num_of_layer + self.hidden_size // self.num_attention_heads * _GATES * _SUMMED

    @property
    def num_positional(self) -> int:
        """Elements of the positional convolution's kernel and of the table of biases."""
        return super().num_positional + self.num_buckets * self.num_attention_heads

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_buckets < 4 or self.max_bucket_distance <= self.num_buckets // 4:
            raise InputError(
                f"num_buckets is {self.num_buckets} and max_bucket_distance {self.max_bucket_distance}; the former "
                "must be 4 at least, the latter more than a quarter of it."
            )


class GatedAttention(SelfAttention):
    """Self-attention with the bias of all layers, scaled by what each query makes of its own features."""

    def __init__(self, config: WavLMConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        heads = config.num_attention_heads
        width = config.hidden_size // heads
        self.gru_rel_pos_linear = linear(
            config, width, _GATES * _SUMMED, dtype=dtype, output_dtype=jnp.float32, rngs=rngs
        )
        self.gru_rel_pos_const = nnx.Param(jnp.ones((heads,), jnp.float32))

    def bias(
        self, x: Float[Array, "batch frames features"], places: Float[Array, "heads frames frames"]
    ) -> Float[Array, "batch heads frames frames"]:
        """The bias of all layers times the gate of each query and head, which is a number from 1 to 2 + the constant.

        Args:
            x: the frames, whose features are cut up for the heads as they come.
            places: of `WavLMEncoder.places`.
        """
        gates = self.gru_rel_pos_linear(x.reshape(*x.shape[:2], self.config.num_attention_heads, -1))
        gates = jax.nn.sigmoid(gates.reshape(*gates.shape[:3], _GATES, _SUMMED).sum(axis=-1))
        reset, update = gates[..., 0], gates[..., 1]
        gate = reset * (update * self.gru_rel_pos_const[...] - 1.0) + 2.0  # [batch, frames, heads]
        return jnp.swapaxes(gate, 1, 2)[..., None] * places


class WavLMLayer(EncoderLayer):
    """A Transformer layer with gated attention."""

    attention_kind = GatedAttention


class WavLMEncoder(Encoder):
    """The Transformer encoder with one table of biases by distance for all layers."""

    layer_kind = WavLMLayer

    def __init__(self, config: WavLMConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        shape = (config.num_buckets, config.num_attention_heads)
        normal = jax.nn.initializers.normal(config.initializer_range)
        self.rel_attn_embed = nnx.Param(normal(rngs.params(), shape, jnp.float32))

    def places(self, num_frames: int) -> Float[Array, "heads frames frames"]:
        """The bias of each head for every pair of frames, float32."""
        config = self.config
        distances = np.arange(1 - num_frames, num_frames)
        buckets = distance_buckets(distances, config.num_buckets, config.max_bucket_distance)
        biases = self.rel_attn_embed[...][buckets].T  # [heads, distances]
        return by_distance(jnp.broadcast_to(biases[:, None], (biases.shape[0], num_frames, biases.shape[1])))


def distance_buckets(
    distances: Int[np.ndarray, " distances"], num_buckets: int, max_distance: int
) -> Int[np.ndarray, " distances"]:
    """The bucket of each distance (Raffel et al. 2020): one for each of the short ones, ever wider ones then.

    Args:
        distances: frames from the query to the key, negative where that comes before.
        num_buckets: the first half is for keys before the query, and for itself.
        max_distance: from which on all are in the last bucket of their half.
    """
    half = num_buckets // 2
    exact = half // 2
    size = np.abs(distances)
    # In float32, as in PyTorch: a logarithm that falls just short of a whole number belongs to the bucket below.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    wide = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(size < exact, size, wide)


class WavLM(Backbone):
    """The model without a head (`WavLMModel`)."""

    encoder_kind = WavLMEncoder


TABLE: tuple[Rule, ...] = (
    *BACKBONE,
    Rule("encoder.rel_attn_embed", "encoder.layers.0.attention.rel_attn_embed.weight"),
    *(
        rule.below("encoder", "encoder")
        for rule in layers(
            linear_names("attention.gru_rel_pos_linear"),
            (
                Rule(
                    "attention.gru_rel_pos_const",
                    "attention.gru_rel_pos_const",
                    Transform(ours=lambda x: x.reshape(-1), theirs=lambda x: x.reshape(1, -1, 1, 1)),
                ),
            ),
        )
    ),
)
"""Every parameter of WavLM below the root of a checkpoint's names, where the first layer keeps the biases."""
