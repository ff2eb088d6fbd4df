"""data2vec for speech (Baevski et al. 2022): wav2vec 2.0's network with a stack of narrow positional convolutions."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from xtremes_jax.errors import InputError
from xtremes_jax.models.backbone import Backbone
from xtremes_jax.models.config import LANGUAGE_ADAPTER, ModelConfig
from xtremes_jax.models.config_fields import MOST_ITEMS
from xtremes_jax.models.encoder import Encoder
from xtremes_jax.models.layers import CONV_NORM_EPS, activate, normalize
from xtremes_jax.models.masking import zero_unless
from xtremes_jax.models.naming import CONV, Rule
from xtremes_jax.models.positional import partitioned_convolution
from xtremes_jax.models.products import spread
from xtremes_jax.models.tables import BACKBONE


@dataclass(frozen=True)
class Data2VecAudioConfig(ModelConfig):
    """One data2vec model; field names and defaults are those of `transformers.Data2VecAudioConfig`."""

    model_type: ClassVar[str] = "data2vec-audio"
    family: ClassVar[str] = "data2vec (speech)"
    architecture: ClassVar[str] = "Data2VecAudio"
    root: ClassVar[str] = "data2vec_audio"
    lacking: ClassVar[tuple[str, ...]] = ("feat_extract_norm", "do_stable_layer_norm", LANGUAGE_ADAPTER)
    unsupported: ClassVar[tuple[str, ...]] = (*ModelConfig.unsupported, LANGUAGE_ADAPTER)

    feat_extract_norm: str = "layer"
    """Always `layer`: a layer norm after each convolution of the front end."""
    num_conv_pos_embeddings: int = 5
    """Positional convolutions, one after the other."""
    conv_pos_kernel_size: int = 19
    """Kernel width of each, in frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_conv_pos_embeddings > MOST_ITEMS:
            raise InputError(
                f"num_conv_pos_embeddings is {self.num_conv_pos_embeddings}; here that is how many convolutions there "
                f"are, {MOST_ITEMS} at most."
            )

    @property
    def num_positional(self) -> int:
        """Elements of the kernels of the positional convolutions."""
        each = self.conv_pos_kernel_size * self.hidden_size**2 // self.num_conv_pos_embedding_groups
        return self.num_conv_pos_embeddings * each


class PositionalLayer(nnx.Module):
    """A grouped convolution over frames, a norm without parameters, an activation."""

    def __init__(self, config: Data2VecAudioConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, features = config.conv_pos_kernel_size, config.hidden_size
        inputs = features // config.num_conv_pos_embedding_groups
        normal = jax.nn.initializers.normal((2.0 / (inputs * width)) ** 0.5)
        self.kernel = nnx.Param(normal(rngs.params(), (width, inputs, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "batch frames features"]) -> Float[Array, "batch frames features"]:
        """Convolves, normalises, activates."""
        y = partitioned_convolution(x.astype(self.dtype), self.kernel[...], self.config.num_conv_pos_embedding_groups)
        y = normalize(y + spread(self.bias[...], y.shape, y.dtype), CONV_NORM_EPS)
        return activate(self.config.feat_extract_activation, y)


class PositionalStack(nnx.Module):
    """Relative positions by several convolutions in turn."""

    def __init__(self, config: Data2VecAudioConfig, *, dtype: Any, rngs: nnx.Rngs):
        count = range(config.num_conv_pos_embeddings)
        self.layers = nnx.Dict({str(index): PositionalLayer(config, dtype=dtype, rngs=rngs) for index in count})

    def __call__(
        self, x: Float[Array, "batch frames features"], valid: Bool[Array, "batch frames 1"] | None
    ) -> Float[Array, "batch frames features"]:
        """What is added to each frame.

        What a convolution makes of the padding would reach a clip's last frames through the next one; it is set to the
        zeros that the convolution would pad the clip with, so that each clip gives what it gives alone.
        """
        for layer in self.layers.values():
            x = layer(zero_unless(valid, x))
        return x


class Data2VecAudioEncoder(Encoder):
    """The Transformer encoder behind the stack of convolutions."""

    positions_kind = PositionalStack

    def add_positions(
        self, x: Float[Array, "batch frames features"], valid: Bool[Array, "batch frames 1"] | None
    ) -> Float[Array, "batch frames features"]:
        """Adds what the stack makes of the frames."""
        return x + self.pos_conv_embed(x, valid)


class Data2VecAudio(Backbone):
    """The model without a head (`Data2VecAudioModel`)."""

    encoder_kind = Data2VecAudioEncoder


TABLE: tuple[Rule, ...] = (
    *BACKBONE,
    Rule("encoder.pos_conv_embed.layers.{i}.kernel", "encoder.pos_conv_embed.layers.{i}.conv.weight", CONV),
    Rule("encoder.pos_conv_embed.layers.{i}.bias", "encoder.pos_conv_embed.layers.{i}.conv.bias"),
)
"""Every parameter of data2vec below the root of a checkpoint's names."""
