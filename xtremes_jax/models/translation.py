"""Speech translation: a speech encoder whose frames an mBART decoder reads (`SpeechEncoderDecoderModel`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Int16

from xtremes_jax.models.backbone import Backbone, HostOrDevice
from xtremes_jax.models.decoder import Decoder
from xtremes_jax.models.families import family_of
from xtremes_jax.models.layers import Linear
from xtremes_jax.models.masking import DECODER, Randomness, fold, frame_mask
from xtremes_jax.models.translation_config import TranslationConfig


class TranslationOutput(NamedTuple):
    """What a translation model says of a batch whose labels it was given."""

    logits: Float[Array, "batch labels vocabulary"]
    """float32; a distribution for each label, given those before it."""
    logit_lengths: Int[Array, " batch"] | None
    """Labels of each row that count, where the model was told."""


class TranslationModel(nnx.Module):
    """A speech encoder and an mBART decoder: raw 16 kHz audio and the labels so far in, logits of the next label out.

    Parameters are named `encoder.…`, `enc_to_dec_proj.…` (where the widths differ) and `decoder.…`, below which they
    are named as in Transformers; all are `nnx.Param` in float32. Build it with `build_model`.
    """

    def __init__(self, config: TranslationConfig, *, dtype: Any = jnp.float32, remat: str = "none", rngs: nnx.Rngs):
        self.config = config
        self.encoder = family_of(config.encoder).backbone(config.encoder, dtype=dtype, remat=remat, rngs=rngs)
        self.decoder = Decoder(config.decoder, dtype=dtype, remat=remat, rngs=rngs)
        if config.has_projection:
            self.enc_to_dec_proj = Linear(
                config.encoder.output_width,
                config.decoder.d_model,
                kernel_init=jax.nn.initializers.normal(config.decoder.init_std),
                dtype=dtype,
                rngs=rngs,
            )

    @property
    def backbone(self) -> Backbone:
        """The encoder."""
        return self.encoder

    def __call__(
        self,
        audio: Int16[HostOrDevice, "batch samples"] | Float[HostOrDevice, "batch samples"] | None,
        audio_lengths: Int[HostOrDevice, " batch"] | None,
        labels: Int[HostOrDevice, "batch labels"],
        label_lengths: Int[HostOrDevice, " batch"] | None = None,
        *,
        randomness: Randomness | None = None,
        frames: Float[HostOrDevice, "batch frames channels"] | None = None,
    ) -> TranslationOutput:
        """Logits of every label given those before it (teacher forcing).

        Args:
            audio: 16 kHz waveforms, int16 or floating point in [-1, 1]; the model's own normalisation is applied.
            audio_lengths: valid samples of each row; None means all.
            labels: token ids of the translations, the end token among them.
            label_lengths: valid labels of each row; None means all.
            randomness: keys of a training step; None means evaluation.
            frames: what `backbone.extract_frames` made of the audio, which then is not looked at.

        Raises:
            InputError: the audio is too short for a frame, or a translation longer than the decoder's positions.
        """
        hidden, lengths = self.encode(audio, audio_lengths, randomness, frames)
        labels = jnp.asarray(labels)
        label_lengths = None if label_lengths is None else jnp.asarray(label_lengths)
        return self.force(hidden, lengths, labels, label_lengths, randomness=randomness)

    def encode(
        self,
        audio: Int16[HostOrDevice, "batch samples"] | Float[HostOrDevice, "batch samples"] | None,
        audio_lengths: Int[HostOrDevice, " batch"] | None = None,
        randomness: Randomness | None = None,
        frames: Float[HostOrDevice, "batch inputs channels"] | None = None,
    ) -> tuple[Float[Array, "batch frames features"], Int[Array, " batch"]]:
        """Encoded speech in the decoder's width, and the valid frames of each row.

        Every clip gives what it gives alone (but see `ModelConfig.mask_padding`); rows of length 0 give finite numbers.
        """
        audio_lengths = None if audio_lengths is None else jnp.asarray(audio_lengths)
        if frames is None:
            frames = self.encoder.extract_frames(jnp.asarray(audio), audio_lengths)
        hidden, lengths = self.encoder(jnp.asarray(frames), audio_lengths, randomness)
        if lengths is None:
            lengths = jnp.full((hidden.shape[0],), hidden.shape[1], jnp.int32)
        return (self.enc_to_dec_proj(hidden) if self.config.has_projection else hidden), lengths

    def force(
        self,
        hidden: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        labels: Int[Array, "batch labels"],
        label_lengths: Int[Array, " batch"] | None,
        *,
        randomness: Randomness | None = None,
    ) -> TranslationOutput:
        """Logits of every label given those before it, from speech that is encoded already."""
        tokens = shift_right(
            labels,
            label_lengths,
            start=self.config.decoder_start_token_id,
            pad=self.config.pad_token_id,
        )
        return TranslationOutput(self.decode(tokens, hidden, lengths, randomness), label_lengths)

    def decode(
        self,
        tokens: Int[Array, "batch tokens"],
        hidden: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None = None,
    ) -> Float[Array, "batch tokens vocabulary"]:
        """float32 logits of every token's successor; `tokens` starts with the start token, `lengths` is in frames."""
        return self.decoder(tokens, hidden, lengths, fold(randomness, DECODER))


def shift_right(
    labels: Int[Array, "batch labels"], label_lengths: Int[Array, " batch"] | None, *, start: int, pad: int
) -> Int[Array, "batch labels"]:
    """What a decoder is given to predict `labels`: the start token and all labels but the last, `pad` past the length.

    Follows `shift_tokens_right` of Transformers' `SpeechEncoderDecoderModel`.
    """
    if label_lengths is not None:
        labels = jnp.where(frame_mask(label_lengths, labels.shape[1]), labels, pad)
    return jnp.pad(labels, ((0, 0), (1, 0)), constant_values=start)[:, :-1]
