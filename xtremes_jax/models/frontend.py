"""From the waveform to frames: normalisation, the convolutional feature extractor, and its projection."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Int16

from xtremes_jax.errors import InputError
from xtremes_jax.models.config import ModelConfig, steps_after
from xtremes_jax.models.layers import (
    CONV_NORM_EPS,
    Convolution,
    FrameGroupNorm,
    LayerNorm,
    activate,
    linear,
    uniform_initializer,
)
from xtremes_jax.models.masking import FEATURE_PROJECTION_DROPOUT, Randomness, dropout, fold, frame_mask

_INT16_SCALE = 32768.0
_VARIANCE_FLOOR = 1e-7  # of Wav2Vec2FeatureExtractor


def prepare_waveform(
    audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
    audio_lengths: Int[Array, " batch"] | None,
    *,
    normalize: bool,
) -> Float[Array, "batch samples"]:
    """Brings audio to float32, and each clip to zero mean and unit variance over its valid samples.

    Follows `Wav2Vec2FeatureExtractor`: `(x - mean) / sqrt(variance + 1e-7)`, then 0 in the padding.

    Args:
        audio: 16 kHz samples, int16 (full scale 32768) or floating point in [-1, 1].
        audio_lengths: valid samples of each row; None means all.
        normalize: whether to normalise; otherwise only the padding is set to 0.
    """
    samples = audio.astype(jnp.float32)
    if jnp.issubdtype(audio.dtype, jnp.integer):
        samples = samples / _INT16_SCALE
    length = audio.shape[1]
    if audio_lengths is None:
        valid, count = None, jnp.full((audio.shape[0], 1), float(max(length, 1)))
    else:
        valid = frame_mask(audio_lengths, length)
        count = jnp.maximum(audio_lengths, 1).astype(jnp.float32)[:, None]
        samples = jnp.where(valid, samples, 0.0)
    if not normalize:
        return samples
    centred = samples - _sum(samples) / count
    if valid is not None:
        centred = jnp.where(valid, centred, 0.0)
    return centred * jax.lax.rsqrt(_sum(jnp.square(centred)) / count + _VARIANCE_FLOOR)


def _sum(samples: Float[Array, "batch samples"]) -> Float[Array, "batch 1"]:
    """Sums each row in two stages, so that a sum of half a million samples keeps float32's accuracy."""
    blocks = jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % 512)))
    blocks = blocks.reshape(samples.shape[0], -1, 512)
    return jnp.sum(jnp.sum(blocks, axis=2), axis=1, keepdims=True)


class ConvLayer(nnx.Module):
    """One convolution of the front end, its norm where it has one, and its activation."""

    def __init__(self, config: ModelConfig, index: int, *, dtype: Any, rngs: nnx.Rngs):
        self.activation = config.feat_extract_activation
        channels = config.conv_dim[index]
        self.conv = Convolution(
            config.conv_dim[index - 1] if index else 1,
            channels,
            width=config.conv_kernel[index],
            stride=config.conv_stride[index],
            use_bias=config.conv_bias,
            dtype=dtype,
            rngs=rngs,
        )
        if config.feat_extract_norm == "layer":
            self.layer_norm = LayerNorm(channels, epsilon=CONV_NORM_EPS)
        elif index == 0:
            self.layer_norm = FrameGroupNorm(channels)  # Transformers calls it layer_norm too
        else:
            self.layer_norm = None

    def __call__(
        self, x: Float[Array, "batch steps inputs"], lengths: Int[Array, " batch"] | None
    ) -> Float[Array, "batch frames channels"]:
        """Convolves, normalises, activates; `lengths` counts this layer's valid output frames (None: all)."""
        x = self.conv(x)
        if isinstance(self.layer_norm, FrameGroupNorm):
            x = self.layer_norm(x, None if lengths is None else frame_mask(lengths, x.shape[1]))
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return activate(self.activation, x)


class FeatureExtractor(nnx.Module):
    """The convolutional front end, called feature encoder in the paper: 16 kHz samples to 50 frames a second."""

    def __init__(self, config: ModelConfig, *, dtype: Any, remat: bool, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.remat = remat
        layers = {str(i): ConvLayer(config, i, dtype=dtype, rngs=rngs) for i in range(len(config.conv_dim))}
        self.conv_layers = nnx.Dict(layers)

    def __call__(
        self, waveform: Float[Array, "batch samples"], lengths: Int[Array, " batch"] | None
    ) -> Float[Array, "batch frames channels"]:
        """Frames of each row; those past `num_frames(lengths)` (lengths in samples) hold finite noise.

        Raises:
            InputError: the arrays are too short for a single frame.
        """
        config = self.config
        if config.num_frames(waveform.shape[1]) < 1:
            raise InputError(
                f"Audio of {waveform.shape[1]} samples gives no frame: this model needs at least "
                f"{config.min_samples} samples. Pad the batch, or leave out clips so short."
            )
        x = waveform[:, :, None].astype(self.dtype)
        for index, (width, stride) in enumerate(zip(config.conv_kernel, config.conv_stride, strict=True)):
            if lengths is not None:
                lengths = steps_after(lengths, width, stride)
            layer = self.conv_layers[str(index)]
            x = _run_rematerialised(layer, x, lengths) if self.remat else layer(x, lengths)
        return x


def _run_rematerialised(layer: ConvLayer, x: Array, lengths: Array | None) -> Array:
    """Runs a layer so that its gradient computes it again instead of keeping what is inside it."""
    graphdef, params = nnx.split(layer)
    return jax.checkpoint(lambda params, x: nnx.merge(graphdef, params)(x, lengths))(params, x)


class FeatureProjection(nnx.Module):
    """Layer norm and a linear map from the front end's channels to the encoder's width."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        channels = config.conv_dim[-1]
        self.layer_norm = LayerNorm(channels, epsilon=config.layer_norm_eps)
        uniform = uniform_initializer(channels**-0.5)
        self.projection = linear(
            config, channels, config.hidden_size, dtype=dtype, rngs=rngs, kernel_init=uniform, bias_init=uniform
        )

    def __call__(
        self, x: Float[Array, "batch frames channels"], randomness: Randomness | None
    ) -> Float[Array, "batch frames features"]:
        """Projects each frame; dropout (`feat_proj_dropout`) follows where `randomness` is given."""
        x = self.projection(x if self.layer_norm is None else self.layer_norm(x))
        return dropout(x, self.config.feat_proj_dropout, fold(randomness, FEATURE_PROJECTION_DROPOUT))
