"""wav2vec 2.0 with Conformer layers (Gulati et al. 2020) and relative or rotary positions (Wang et al. 2022)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xtremes_jax.errors import InputError
from xtremes_jax.models.attention import attend
from xtremes_jax.models.backbone import Backbone
from xtremes_jax.models.config import LANGUAGE_ADAPTER, ModelConfig
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.depthwise import DepthwiseConvolution
from xtremes_jax.models.encoder import Encoder, FeedForward
from xtremes_jax.models.layers import CONV_NORM_EPS, BatchNorm, LayerNorm, activate, linear
from xtremes_jax.models.masking import (
    LAYER_ATTENTION,
    LAYER_ATTENTION_OUTPUT,
    LAYER_CONVOLUTION,
    LAYER_FIRST_FEED_FORWARD,
    Randomness,
    dropout,
    fold,
    frame_mask,
    zero_unless,
)
from xtremes_jax.models.naming import CONV, LINEAR, Rule, Transform, batch_norm, layers, norm
from xtremes_jax.models.naming import linear as linear_names
from xtremes_jax.models.positional import PositionalConvolution
from xtremes_jax.models.products import multiply, spread
from xtremes_jax.models.relative import by_distance
from xtremes_jax.models.tables import BACKBONE

_KIND = "position_embeddings_type"


@dataclass(frozen=True)
class Wav2Vec2ConformerConfig(ModelConfig):
    """One Conformer; field names and defaults are those of `transformers.Wav2Vec2ConformerConfig`."""

    model_type: ClassVar[str] = "wav2vec2-conformer"
    family: ClassVar[str] = "wav2vec 2.0 Conformer"
    architecture: ClassVar[str] = "Wav2Vec2Conformer"
    root: ClassVar[str] = "wav2vec2_conformer"
    lacking: ClassVar[tuple[str, ...]] = ("do_stable_layer_norm", LANGUAGE_ADAPTER)
    unsupported: ClassVar[tuple[str, ...]] = ("quantization_config", LANGUAGE_ADAPTER)
    positions: ClassVar[tuple[str, ...]] = ("relative", "rotary")
    """Values of `position_embeddings_type` beside `none`."""

    do_stable_layer_norm: bool = True
    """Always true: the encoder's norm comes after the last layer."""
    position_embeddings_type: str = "relative"
    """`relative` (Dai et al. 2019), `rotary` (Su et al. 2021), or `none`, which is null in a `config.json`."""
    rotary_embedding_base: int = 10000
    """Base of the wave lengths of rotary positions."""
    max_source_positions: int = 5000
    """Kept for the exported configuration: relative positions are computed for as many frames as there are."""
    conv_depthwise_kernel_size: int = 31
    """Kernel width of each layer's convolution, in frames; odd."""
    conformer_conv_dropout: float = 0.1
    """Dropout rate after each layer's convolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position_embeddings_type not in (*self.positions, "none"):
            raise InputError(
                f"position_embeddings_type is {shown(self.position_embeddings_type)}; known are "
                f"{', '.join(self.positions)} and null."
            )
        if self.conv_depthwise_kernel_size % 2 == 0:
            raise InputError(f"conv_depthwise_kernel_size is {self.conv_depthwise_kernel_size}; it must be odd.")
        if not 0 <= self.conformer_conv_dropout < 1:
            raise InputError(f"conformer_conv_dropout is {self.conformer_conv_dropout}; it must be in [0, 1).")
        width = self.hidden_size // self.num_attention_heads
        if self.position_embeddings_type == "rotary" and width % 2:
            raise InputError(f"Rotary positions need heads of an even width, not {width}.")

    @property
    def inner_norm_eps(self) -> float:
        """Epsilon of the norms in layers: PyTorch's default, whatever `layer_norm_eps` says."""
        return CONV_NORM_EPS

    @property
    def num_of_layer(self) -> int:
        """Elements of the matrices and kernels of one Conformer layer."""
        width = self.hidden_size
        squares = 4 + 3 + (self.position_embeddings_type == "relative")
        return width * (squares * width + 4 * self.intermediate_size + self.conv_depthwise_kernel_size)

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], **options: Any) -> "Wav2Vec2ConformerConfig":
        """As `ModelConfig.from_huggingface`; a `config.json` says null where there are no positions."""
        kind = config.get(_KIND, cls.position_embeddings_type)
        return super().from_huggingface({**config, _KIND: "none" if kind is None else kind}, **options)

    def to_huggingface(self, **options: Any) -> dict[str, Any]:
        """As `ModelConfig.to_huggingface`."""
        kind = self.position_embeddings_type
        return super().to_huggingface(**options) | {_KIND: None if kind == "none" else kind}


class ConformerAttention(nnx.Module):
    """Self-attention with relative or rotary positions, or none.

    Args:
        config: of the model.
        width: of the frames; by default the encoder's.
        kind: of positions; by default those of the configuration.
    """

    def __init__(self, config: Wav2Vec2ConformerConfig, *, width: int = 0, kind: str = "", dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.kind = kind or config.position_embeddings_type
        width, heads = width or config.hidden_size, config.num_attention_heads
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            setattr(self, name, linear(config, width, width, dtype=dtype, rngs=rngs))
        if self.kind == "relative":
            normal = jax.nn.initializers.normal(config.initializer_range)
            self.linear_pos = nnx.Param(normal(rngs.params(), (width, width), jnp.float32))
            bound = (6.0 / (heads + width // heads)) ** 0.5  # Glorot's
            uniform = jax.nn.initializers.uniform(2 * bound)
            for name in ("pos_bias_u", "pos_bias_v"):
                setattr(self, name, nnx.Param(uniform(rngs.params(), (heads, width // heads), jnp.float32) - bound))

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        places: Any,
    ) -> Float[Array, "batch frames features"]:
        """Every frame looks at the valid frames of its row; `lengths` is in frames, `places` of the encoder."""
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        seen = x if self.kind != "rotary" else rotate(x.reshape(heads), *places).reshape(x.shape)
        query = self.linear_q(seen).reshape(heads)
        key, value = self.linear_k(seen).reshape(heads), self.linear_v(x).reshape(heads)
        bias = self.bias(query, places)
        if self.kind == "relative":
            query = biased(query, self.pos_bias_u[...])
        mixed = attend(
            query, key, value, lengths, bias=bias, dropout_rate=self.config.attention_dropout, randomness=randomness
        )
        return self.linear_out(mixed.reshape(x.shape))

    def bias(
        self, query: Float[Array, "batch frames heads head_features"], places: Any
    ) -> Float[Array, "batch heads frames frames"] | None:
        """What each query scores every frame with for its distance alone, in float32; None where that is nothing."""
        if self.kind != "relative":
            return None
        waves = multiply(places.astype(query.dtype), self.linear_pos[...], query.dtype)
        waves = waves.reshape(waves.shape[0], *query.shape[2:])
        asked = biased(query, self.pos_bias_v[...]) * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        return by_distance(jnp.einsum("bqhd,phd->bhqp", asked, waves, preferred_element_type=jnp.float32))


def biased(
    query: Float[Array, "batch frames heads head_features"], bias: Float[Array, "heads head_features"]
) -> Float[Array, "batch frames heads head_features"]:
    """Queries and a float32 vector for each head, whose gradient is summed in float32 in any compute dtype."""
    rows = query.reshape(*query.shape[:2], -1)
    return (rows + spread(bias.reshape(-1), rows.shape, rows.dtype)).reshape(query.shape)


def rotate(
    x: Float[Array, "batch frames heads head_features"],
    cosines: Float[Array, "frames half"],
    sines: Float[Array, "frames half"],
) -> Float[Array, "batch frames heads head_features"]:
    """Turns each pair of features, one of either half, by its frame's angle (Su et al. 2021)."""
    first, second = jnp.split(x, 2, axis=-1)
    cosines, sines = (wave[:, None].astype(x.dtype) for wave in (cosines, sines))
    return jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


class ConvolutionModule(nnx.Module):
    """Norm, gated linear unit, convolution of each channel by itself, batch norm, activation, linear map."""

    is_causal = False
    inner_norm = "batch_norm"
    """Name of the norm behind the convolution."""

    @staticmethod
    def inner_norm_kind(config: Wav2Vec2ConformerConfig) -> nnx.Module:
        """That norm."""
        return BatchNorm(config.hidden_size)

    def __init__(self, config: Wav2Vec2ConformerConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width = config.hidden_size
        normal = jax.nn.initializers.normal((2.0 / width) ** 0.5)
        self.layer_norm = LayerNorm(width, epsilon=config.inner_norm_eps)
        self.pointwise_conv1 = nnx.Param(normal(rngs.params(), (width, 2 * width), jnp.float32))
        self.depthwise_conv = DepthwiseConvolution(
            width, config.conv_depthwise_kernel_size, is_causal=self.is_causal, dtype=dtype, rngs=rngs
        )
        setattr(self, self.inner_norm, self.inner_norm_kind(config))
        self.pointwise_conv2 = nnx.Param(normal(rngs.params(), (width, width), jnp.float32))

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        valid: Bool[Array, "batch frames 1"] | None,
        randomness: Randomness | None,
    ) -> Float[Array, "batch frames features"]:
        """Mixes neighbouring frames; those that are not valid are the zeros that a clip's ends are padded with."""
        kept, gate = jnp.split(multiply(self.layer_norm(x), self.pointwise_conv1[...], self.dtype), 2, axis=-1)
        x = self.depthwise_conv(zero_unless(valid, kept * jax.nn.sigmoid(gate)))
        x = activate(self.config.hidden_act, getattr(self, self.inner_norm)(x))
        x = multiply(x, self.pointwise_conv2[...], self.dtype)
        return dropout(x, self.config.conformer_conv_dropout, fold(randomness, LAYER_CONVOLUTION))


class ConformerLayer(nnx.Module):
    """Half a feed-forward block, attention, convolution, the other half; a norm before each and after all."""

    attention_kind = ConformerAttention
    convolution_kind = ConvolutionModule

    def __init__(self, config: Wav2Vec2ConformerConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        width = config.hidden_size
        for name in ("ffn1", "self_attn", "ffn2", "final"):
            setattr(self, f"{name}_layer_norm", LayerNorm(width, epsilon=config.inner_norm_eps))
        self.ffn1 = FeedForward(config, dtype=dtype, rngs=rngs)
        self.self_attn = self.attention_kind(config, dtype=dtype, rngs=rngs)
        self.conv_module = self.convolution_kind(config, dtype=dtype, rngs=rngs)
        self.ffn2 = FeedForward(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        places: Any,
    ) -> Float[Array, "batch frames features"]:
        """One layer; `lengths` is in frames, `randomness` is already folded for this layer, `places` the encoder's."""
        valid = None if lengths is None else frame_mask(lengths, x.shape[1])[:, :, None]
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x), fold(randomness, LAYER_FIRST_FEED_FORWARD))
        seen = self.self_attn_layer_norm(x)
        attended = self.self_attn(seen, lengths, fold(randomness, LAYER_ATTENTION), places)
        x = x + dropout(attended, self.config.attention_dropout, fold(randomness, LAYER_ATTENTION_OUTPUT))
        x = x + self.conv_module(x, valid, randomness)
        return self.final_layer_norm(x + 0.5 * self.ffn2(self.ffn2_layer_norm(x), randomness))


class LayersAlone(Encoder):
    """Conformer layers. What tells places is in them, not in a convolution before them."""

    layer_kind = ConformerLayer

    @staticmethod
    def positions_kind(config: Wav2Vec2ConformerConfig, *, dtype: Any, rngs: nnx.Rngs) -> None:
        """There is none."""
        return None

    def add_positions(
        self, x: Float[Array, "batch frames features"], valid: Bool[Array, "batch frames 1"] | None
    ) -> Float[Array, "batch frames features"]:
        """The same frames."""
        return x

    def places(self, num_frames: int) -> Any:
        """Sinusoids of every distance `[distances, features]`, or the cosines and sines of every frame's angles."""
        config = self.config
        if config.position_embeddings_type == "relative":
            return sinusoids(num_frames, config.hidden_size)
        if config.position_embeddings_type == "rotary":
            angles = jnp.arange(num_frames, dtype=jnp.float32)[:, None] * _speeds(config)
            return jnp.cos(angles), jnp.sin(angles)
        return None


class Unused(nnx.Module):
    """Parts that Transformers' model stores and never uses."""

    def __init__(self, config: Wav2Vec2ConformerConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.pos_conv_embed = PositionalConvolution(config, dtype=dtype, rngs=rngs)


class ConformerEncoder(LayersAlone):
    """Conformer layers and a norm behind them."""

    def __init__(self, config: Wav2Vec2ConformerConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        self.unused = Unused(config, dtype=dtype, rngs=rngs)


def _speeds(config: Wav2Vec2ConformerConfig) -> Float[np.ndarray, " half"]:
    """Radians that each pair of a head's features turns by from frame to frame."""
    width = config.hidden_size // config.num_attention_heads
    turns = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return np.float32(1.0) / np.float32(config.rotary_embedding_base) ** turns


def constants(config: Wav2Vec2ConformerConfig) -> dict[str, np.ndarray]:
    """The tensor that checkpoints with rotary positions hold beside the parameters."""
    is_rotary = config.position_embeddings_type == "rotary"
    return {"encoder.embed_positions.inv_freq": _speeds(config)} if is_rotary else {}


def sinusoids(num_frames: int, width: int) -> Float[Array, "distances width"]:
    """Sines and cosines of all distances from `1 - num_frames` to `num_frames - 1`, in turn along the features.

    As Vaswani et al. 2017 have them of places, here of how many frames the key lies before the query (Dai et al. 2019).
    """
    before = -jnp.arange(1 - num_frames, num_frames, dtype=jnp.float32)
    speeds = jnp.exp(jnp.arange(0, width, 2, dtype=jnp.float32) * -(math.log(10000.0) / width))
    angles = before[:, None] * speeds
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return waves.reshape(waves.shape[0], -1)[:, :width]


class Wav2Vec2Conformer(Backbone):
    """The model without a head (`Wav2Vec2ConformerModel`)."""

    encoder_kind = ConformerEncoder


_POINTWISE = Transform(ours=lambda x: x[:, :, 0].T, theirs=lambda x: x.T[:, :, None])
"""A convolution of kernels 1 wide, `[outputs, inputs, 1]`, as the linear map that it is."""
TABLE: tuple[Rule, ...] = (
    *(rule for rule in BACKBONE if not rule.ours.startswith(("encoder.pos_conv_embed.", "encoder.layers."))),
    *(
        Rule(rule.ours.replace("encoder.", "encoder.unused.", 1), rule.theirs, rule.transform)
        for rule in BACKBONE
        if rule.ours.startswith("encoder.pos_conv_embed.")
    ),
    *(
        rule.below("encoder", "encoder")
        for rule in layers(
            *(
                linear_names(f"{block}.{name}")
                for block in ("ffn1", "ffn2")
                for name in ("intermediate_dense", "output_dense")
            ),
            *(norm(f"{name}_layer_norm") for name in ("ffn1", "self_attn", "ffn2", "final")),
            *(linear_names(f"self_attn.linear_{name}") for name in ("q", "k", "v", "out")),
            (
                Rule("self_attn.linear_pos", "self_attn.linear_pos.weight", LINEAR),
                Rule("self_attn.pos_bias_u", "self_attn.pos_bias_u"),
                Rule("self_attn.pos_bias_v", "self_attn.pos_bias_v"),
                Rule("conv_module.pointwise_conv1", "conv_module.pointwise_conv1.weight", _POINTWISE),
                Rule("conv_module.depthwise_conv.kernel", "conv_module.depthwise_conv.weight", CONV),
                Rule("conv_module.pointwise_conv2", "conv_module.pointwise_conv2.weight", _POINTWISE),
            ),
            norm("conv_module.layer_norm"),
            batch_norm("conv_module.batch_norm"),
        )
    ),
)
"""Every parameter of the Conformer below the root of a checkpoint's names."""
