"""HuBERT (Hsu et al. 2021): wav2vec 2.0's network, with two variants of its own at the encoder's entrance."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xtremes_jax.models.backbone import Backbone
from xtremes_jax.models.config import ADAPTER_FIELDS, ModelConfig
from xtremes_jax.models.encoder import Encoder
from xtremes_jax.models.frontend import FeatureProjection
from xtremes_jax.models.layers import BatchNorm, activate
from xtremes_jax.models.masking import zero_unless
from xtremes_jax.models.naming import CONV, Rule, batch_norm
from xtremes_jax.models.positional import PositionalConvolution, partitioned_convolution
from xtremes_jax.models.products import spread
from xtremes_jax.models.tables import BACKBONE


@dataclass(frozen=True)
class HubertConfig(ModelConfig):
    """One HuBERT model; field names and defaults are those of `transformers.HubertConfig`, the base model's."""

    model_type: ClassVar[str] = "hubert"
    family: ClassVar[str] = "HuBERT"
    architecture: ClassVar[str] = "Hubert"
    root: ClassVar[str] = "hubert"
    lacking: ClassVar[tuple[str, ...]] = ADAPTER_FIELDS

    feat_proj_layer_norm: bool = True
    """Whether the front end's features are normalised before they are projected."""
    conv_pos_batch_norm: bool = False
    """Whether a batch norm stands before the positional convolution, in place of the weight norm of its kernel."""


class HubertProjection(FeatureProjection):
    """The projection to the encoder's width; the norm before it may be missing."""

    def __init__(self, config: HubertConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        if not config.feat_proj_layer_norm:
            self.layer_norm = None


class NormedPositions(nnx.Module):
    """Relative positions by a grouped convolution of frames that a batch norm has scaled (`conv_pos_batch_norm`)."""

    def __init__(self, config: HubertConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, features = config.num_conv_pos_embeddings, config.hidden_size
        inputs = features // config.num_conv_pos_embedding_groups
        normal = jax.nn.initializers.normal((2.0 / (inputs * width)) ** 0.5)
        self.batch_norm = BatchNorm(features)
        self.kernel = nnx.Param(normal(rngs.params(), (width, inputs, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(
        self, x: Float[Array, "batch frames features"], valid: Bool[Array, "batch frames 1"] | None
    ) -> Float[Array, "batch frames features"]:
        """What is added to each frame. Frames past a row's length are 0, and are kept so past the norm."""
        x = self.batch_norm(x.astype(self.dtype))
        x = zero_unless(valid, x)
        y = partitioned_convolution(x, self.kernel[...], self.config.num_conv_pos_embedding_groups)
        return activate(self.config.feat_extract_activation, y + spread(self.bias[...], y.shape, y.dtype))


class HubertEncoder(Encoder):
    """The Transformer encoder, with either kind of positional convolution."""

    @staticmethod
    def positions_kind(config: HubertConfig, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
        """The positional convolution that the configuration asks for."""
        kind = NormedPositions if config.conv_pos_batch_norm else PositionalConvolution
        return kind(config, dtype=dtype, rngs=rngs)

    def add_positions(
        self, x: Float[Array, "batch frames features"], valid: Bool[Array, "batch frames 1"] | None
    ) -> Float[Array, "batch frames features"]:
        """Adds what the convolution makes of the frames."""
        return x + (self.pos_conv_embed(x, valid) if self.config.conv_pos_batch_norm else self.pos_conv_embed(x))


class Hubert(Backbone):
    """The model without a head (`HubertModel`)."""

    projection_kind = HubertProjection
    encoder_kind = HubertEncoder


TABLE: tuple[Rule, ...] = (
    *BACKBONE,
    *batch_norm("encoder.pos_conv_embed.batch_norm"),
    Rule("encoder.pos_conv_embed.kernel", "encoder.pos_conv_embed.conv.weight", CONV),
)
"""Every parameter of HuBERT below the root of a checkpoint's names."""
