"""SEW (Wu et al. 2022): wav2vec 2.0's network, but its layers see fewer frames, which are brought back after them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xtremes_jax.models.backbone import Backbone
from xtremes_jax.models.config import ADAPTER_FIELDS, ModelConfig
from xtremes_jax.models.encoder import Encoder
from xtremes_jax.models.frontend import FeatureProjection
from xtremes_jax.models.layers import activate, linear
from xtremes_jax.models.masking import (
    FEATURE_PROJECTION_DROPOUT,
    POSITION_DROPOUT,
    Randomness,
    dropout,
    fold,
    frame_mask,
    zero_unless,
)
from xtremes_jax.models.naming import Rule, norm
from xtremes_jax.models.naming import linear as linear_names
from xtremes_jax.models.tables import BACKBONE


@dataclass(frozen=True)
class SEWConfig(ModelConfig):
    """One SEW model; field names and defaults are those of `transformers.SEWConfig`, the tiny model's."""

    model_type: ClassVar[str] = "sew"
    family: ClassVar[str] = "SEW"
    architecture: ClassVar[str] = "SEW"
    root: ClassVar[str] = "sew"
    lacking: ClassVar[tuple[str, ...]] = (*ADAPTER_FIELDS, "do_stable_layer_norm")

    conv_dim: tuple[int, ...] = (64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512)
    conv_kernel: tuple[int, ...] = (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1)
    conv_stride: tuple[int, ...] = (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1)
    ctc_loss_reduction: str = "mean"
    squeeze_factor: int = 2
    """Frames that become one before the layers."""

    @property
    def is_projected(self) -> bool:
        """Whether a linear map leads from the front end's channels to the encoder's width."""
        return self.conv_dim[-1] != self.hidden_size

    @property
    def num_parameters(self) -> int:
        """As of any model, with what brings the frames back; less the projection where there is none."""
        unprojected = 0 if self.is_projected else self.conv_dim[-1] * self.hidden_size
        return super().num_parameters + self.squeeze_factor * self.hidden_size**2 - unprojected


class SEWProjection(FeatureProjection):
    """Layer norm, and a linear map only between different widths."""

    def __init__(self, config: SEWConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        inputs, width = config.conv_dim[-1], config.hidden_size
        self.projection = linear(config, inputs, width, dtype=dtype, rngs=rngs) if config.is_projected else None

    def __call__(
        self, x: Float[Array, "batch frames channels"], randomness: Randomness | None
    ) -> Float[Array, "batch frames features"]:
        """Normalises and projects each frame; dropout follows as in wav2vec 2.0."""
        x = self.layer_norm(x)
        if self.projection is not None:
            x = self.projection(x)
        return dropout(x, self.config.feat_proj_dropout, fold(randomness, FEATURE_PROJECTION_DROPOUT))


class Upsampling(nnx.Module):
    """Each frame of the layers becomes `squeeze_factor` frames."""

    def __init__(self, config: SEWConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        width = config.hidden_size
        self.projection = linear(config, width, width * config.squeeze_factor, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch squeezed features"]) -> Float[Array, "batch frames features"]:
        """Projects to as many frames side by side, and lays them one after another."""
        x = activate(self.config.feat_extract_activation, self.projection(x))
        return x.reshape(x.shape[0], x.shape[1] * self.config.squeeze_factor, self.config.hidden_size)


class SEWEncoder(Encoder):
    """Frames are averaged by twos, encoded, and brought back; the odd one at a clip's end is 0, as in Transformers."""

    def __init__(self, config: SEWConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        self.upsample = Upsampling(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        layer_weights: Float[Array, " layers_and_input"] | None = None,
    ) -> tuple[Float[Array, "batch frames features"], Float[Array, "batch squeezed features"] | None]:
        """As `Encoder`; the weighted sum is of the layers' fewer frames."""
        factor, frames = self.config.squeeze_factor, x.shape[1]
        x = zero_unless(_mask(lengths, frames), x)
        squeezed = None if lengths is None else lengths // factor
        x = self.layer_norm(self._squeeze(x))
        x = dropout(x, self.config.hidden_dropout, fold(randomness, POSITION_DROPOUT))
        last, mixed = self._scan_layers(x, squeezed, randomness, layer_weights)
        last = self.upsample(last)
        last = jnp.pad(last, ((0, 0), (0, frames - last.shape[1]), (0, 0)))
        return zero_unless(_mask(None if squeezed is None else squeezed * factor, frames), last), mixed

    def _squeeze(self, x: Float[Array, "batch frames features"]) -> Float[Array, "batch squeezed features"]:
        """The mean of every `squeeze_factor` frames, with the positional convolution's output at the first of them."""
        factor = self.config.squeeze_factor
        count = x.shape[1] // factor
        whole = x[:, : count * factor].reshape(x.shape[0], count, factor, x.shape[2])
        means = jnp.mean(whole.astype(jnp.float32), axis=2).astype(x.dtype)
        return means + self.pos_conv_embed(x)[:, : count * factor : factor]


def _mask(lengths: Int[Array, " batch"] | None, num_frames: int) -> Bool[Array, "batch frames 1"] | None:
    """Which frames are valid; None for all."""
    return None if lengths is None else frame_mask(lengths, num_frames)[:, :, None]


class SEW(Backbone):
    """The model without a head (`SEWModel`)."""

    projection_kind = SEWProjection
    encoder_kind = SEWEncoder

    def __call__(
        self,
        frames: Float[Array, "batch inputs channels"],
        audio_lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        layer_weights: Float[Array, " layers_and_input"] | None = None,
    ) -> tuple[Float[Array, "batch frames features"], Int[Array, " batch"] | None]:
        """As `Backbone`; a weighted sum of all layers has their fewer frames."""
        hidden, lengths = super().__call__(frames, audio_lengths, randomness, layer_weights)
        if layer_weights is not None and lengths is not None:
            lengths = lengths // self.config.squeeze_factor
        return hidden, lengths


TABLE: tuple[Rule, ...] = (
    *(rule for rule in BACKBONE if not rule.ours.startswith("feature_projection.")),
    *norm("feature_projection.layer_norm", "layer_norm"),
    *linear_names("feature_projection.projection", "feature_projection"),
    *linear_names("encoder.upsample.projection"),
)
"""Every parameter of SEW below the root of a checkpoint's names."""
