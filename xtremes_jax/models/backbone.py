"""The speech encoder that all heads and decoders stand on: waveforms in, hidden states out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int16

from xtremes_jax.models.adapter import Adapter
from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.encoder import Encoder
from xtremes_jax.models.frontend import FeatureExtractor, FeatureProjection, prepare_waveform
from xtremes_jax.models.masking import ADAPTER, FEATURE_MASK, TIME_MASK, Randomness, fold, spec_augment_mask
from xtremes_jax.models.products import spread

HostOrDevice = np.ndarray | Array
"""Arrays that a model takes: NumPy's too."""


class Backbone(nnx.Module):
    """The model without a head: front end, projection, SpecAugment, encoder, adapter if any (`Wav2Vec2Model`).

    Other families differ in the classes of its parts.
    """

    projection_kind = FeatureProjection
    encoder_kind = Encoder
    adapter_kind = Adapter

    def __init__(self, config: ModelConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.feature_extractor = self.front_end(config, dtype=dtype, remat=remat, rngs=rngs)
        self.feature_projection = self.projection_kind(config, dtype=dtype, rngs=rngs)
        self.masked_spec_embed = nnx.Param(jax.random.uniform(rngs.params(), (config.hidden_size,), jnp.float32))
        self.encoder = self.encoder_kind(config, dtype=dtype, remat=remat, rngs=rngs)
        self.adapter = self.adapter_kind(config, dtype=dtype, rngs=rngs) if config.add_adapter else None

    @staticmethod
    def front_end(config: ModelConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs) -> nnx.Module | None:
        """What makes frames of waveforms; None where that needs no parameters."""
        return FeatureExtractor(config, dtype=dtype, remat=remat != "none", rngs=rngs)

    def extract_frames(
        self,
        audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
        audio_lengths: Int[Array, " batch"] | None,
    ) -> Float[Array, "batch frames channels"]:
        """What the front end makes of raw audio: nothing random comes before, so a frozen one makes the
        same of a clip every time."""
        waveform = prepare_waveform(audio, audio_lengths, normalize=self.config.normalize_waveform)
        return self.feature_extractor(waveform, self._unmasked_as_whole(audio_lengths))

    def _unmasked_as_whole(self, audio_lengths: Int[Array, " batch"] | None) -> Int[Array, " batch"] | None:
        """The lengths that count past the waveform: None, for all samples, where padding is not masked."""
        return audio_lengths if self.config.mask_padding else None

    def __call__(
        self,
        frames: Float[Array, "batch inputs channels"],
        audio_lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        layer_weights: Float[Array, " layers_and_input"] | None = None,
    ) -> tuple[Float[Array, "batch frames features"], Int[Array, " batch"] | None]:
        """Hidden states (the weighted sum of all layers where weights are given) and the valid frames of each row.

        Args:
            frames: of `extract_frames`, in any floating-point type.
            audio_lengths: valid samples of each row; None means all.
            randomness: keys of a training step; None means evaluation.
            layer_weights: weights of the first layer's input and of every layer's output.
        """
        audio_lengths = self._unmasked_as_whole(audio_lengths)
        x = frames.astype(self.dtype)
        lengths = None if audio_lengths is None else self.config.num_frames(audio_lengths)
        x = self.feature_projection(x, randomness)
        x = self._spec_augment(x, lengths, randomness)
        last, mixed = self.encoder(x, lengths, randomness, layer_weights)
        if self.adapter is not None:
            last = self.adapter(last, lengths, fold(randomness, ADAPTER))
            lengths = None if audio_lengths is None else self.config.num_output_frames(audio_lengths)
        return (last if mixed is None else mixed), lengths

    def _spec_augment(self, x: Array, lengths: Array | None, randomness: Randomness | None) -> Array:
        """Masks spans of frames with a learned vector, and spans of features with zeros (Park et al. 2019)."""
        config = self.config
        if randomness is None or not config.apply_spec_augment:
            return x
        batch, frames, features = x.shape
        if config.mask_time_prob > 0:
            masked = spec_augment_mask(
                fold(randomness, TIME_MASK),
                jnp.full((batch,), frames, jnp.int32) if lengths is None else lengths,
                frames,
                mask_prob=config.mask_time_prob,
                mask_length=config.mask_time_length,
                min_masks=config.mask_time_min_masks,
            )
            x = jnp.where(masked[:, :, None], spread(self.masked_spec_embed[...], x.shape, x.dtype), x)
        if config.mask_feature_prob > 0:
            masked = spec_augment_mask(
                fold(randomness, FEATURE_MASK),
                jnp.full((batch,), features, jnp.int32),
                features,
                mask_prob=config.mask_feature_prob,
                mask_length=config.mask_feature_length,
                min_masks=config.mask_feature_min_masks,
            )
            x = jnp.where(masked[:, None, :], jnp.zeros((), x.dtype), x)
        return x
