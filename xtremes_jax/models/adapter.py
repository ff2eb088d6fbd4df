"""The convolutional adapter between a speech encoder and what reads it: strided convolutions that shorten its output.

Follows `Wav2Vec2Adapter` of Transformers (Li et al. 2021, "Multilingual Speech Translation from Efficient Finetuning of
Pretrained Models"), except that padding never reaches a clip's frames, and that no layer is dropped in training: one
that was would change the number of frames.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xtremes_jax.errors import InputError
from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.layers import CONV_NORM_EPS, Convolution, LayerNorm, linear
from xtremes_jax.models.masking import Randomness, fold, frame_mask, zero_unless


class AdapterLayer(nnx.Module):
    """One strided convolution to twice the width, halved again by a gated linear unit (Dauphin et al. 2017)."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        width = config.output_width
        self.conv = Convolution(
            width,
            2 * width,
            width=config.adapter_kernel_size,
            stride=config.adapter_stride,
            use_bias=True,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        valid: Bool[Array, "batch frames 1"] | None,
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
    ) -> Float[Array, "batch fewer features"]:
        """Convolves the frames, with one of zeros at either end; the second half of the channels gates the first.

        Args:
            x: the frames.
            valid: those of clips; what lies past an end must be the zeros that the convolution would pad a clip with.
            lengths: of the result, and
            randomness: folded for this layer: for families whose layers attend, or drop out; nothing does here.
        """
        x = zero_unless(valid, x)
        kept, gate = jnp.split(self.conv(jnp.pad(x, ((0, 0), (1, 1), (0, 0)))), 2, axis=2)
        return kept * jax.nn.sigmoid(gate)


class Adapter(nnx.Module):
    """A projection where the widths differ, then the strided convolutions. Families differ in the class of those."""

    layer_kind = AdapterLayer

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        if config.output_width != config.hidden_size:
            self.proj = linear(config, config.hidden_size, config.output_width, dtype=dtype, rngs=rngs)
            self.proj_layer_norm = LayerNorm(config.output_width, epsilon=CONV_NORM_EPS)
        layers = range(config.num_adapter_layers)
        self.layers = nnx.Dict({str(index): self.layer_kind(config, dtype=dtype, rngs=rngs) for index in layers})

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None = None,
    ) -> Float[Array, "batch fewer outputs"]:
        """Shortens encoded frames; each clip gives what it gives alone.

        Args:
            x: the encoder's output.
            lengths: valid frames of each row; None means all.
            randomness: keys folded for the adapter; None means evaluation.

        Raises:
            InputError: the arrays are too short for a single frame of output.
        """
        if self.config.output_width != self.config.hidden_size:
            x = self.proj_layer_norm(self.proj(x))
        for index, layer in enumerate(self.layers.values()):
            steps = x.shape[1]
            if self.config.adapter_steps(steps) < 1:
                raise InputError(
                    f"The adapter gets {steps} frames, of which kernels {self.config.adapter_kernel_size} wide leave "
                    "none. Pad the batch, or leave out clips so short."
                )
            valid = None if lengths is None else frame_mask(lengths, steps)[:, :, None]
            lengths = None if lengths is None else self.config.adapter_steps(lengths)
            x = layer(x, valid, lengths, fold(randomness, index))
        return x
