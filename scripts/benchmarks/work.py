"""The work of one step, as every contender gets it: its sizes, random clips, and analytic cost."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xtremes_jax.batch import SAMPLE_RATE, Batch
from xtremes_jax.models import PRESETS, ModelConfig
from xtremes_jax.models.config import steps_after

LABELS_PER_SECOND = 12
"""Characters of a second of read speech: MLS has 11 to 17, depending on the language."""


@dataclass(frozen=True)
class Work:
    """What a step is asked to do."""

    config: str
    """One of `PRESETS`."""
    head: str = "ctc"
    batch: int = 4
    seconds: float = 10.0
    """Of the longest clip: what the batch is padded to."""
    raggedness: float = 0.0
    """Clips are between (1 - raggedness) x `seconds` and `seconds` long."""
    dtype: str = "float32"
    remat: str = "none"
    freeze_feature_encoder: bool = True
    vocab_size: int = 64
    seed: int = 0

    def model_config(self) -> ModelConfig:
        """The architecture with its head; SpecAugment on, dropout and layerdrop off, as in the reference script."""
        return dataclasses.replace(
            PRESETS[self.config],
            head=self.head,
            vocab_size=self.vocab_size,
            pad_token_id=0,
            num_labels=14,
            layerdrop=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            hidden_dropout=0.0,
            final_dropout=0.0,
            mask_time_prob=0.05,
            mask_feature_prob=0.0,
        )

    def batches(self, count: int) -> list[Batch]:
        """Random batches: noise with a spectrum that falls like speech's, random labels. SYNTHETIC, never zeros."""
        rng = np.random.default_rng(self.seed)
        return [self._batch(rng) for _ in range(count)]

    def _batch(self, rng: np.random.Generator) -> Batch:
        samples = int(self.seconds * SAMPLE_RATE)
        lengths = (samples * (1.0 - self.raggedness * rng.random(self.batch))).astype(np.int32)
        lengths[0] = samples
        noise = rng.standard_normal((self.batch, samples)).cumsum(axis=1)
        noise -= np.linspace(0, 1, samples) * noise[:, -1:]
        audio = (noise / np.abs(noise).max() * 20_000 + 300 * rng.standard_normal(noise.shape)).astype(np.int16)
        audio[np.arange(samples) >= lengths[:, None]] = 0
        label_lengths = np.maximum(lengths * LABELS_PER_SECOND // SAMPLE_RATE, 1).astype(np.int32)
        if self.head == "classification":
            labels, label_lengths = rng.integers(0, 14, (self.batch, 1)), np.ones(self.batch, np.int32)
        else:
            labels = rng.integers(1, self.vocab_size, (self.batch, label_lengths.max()))
            labels[np.arange(labels.shape[1]) >= label_lengths[:, None]] = 0
        return Batch(
            audio=audio,
            audio_lengths=lengths,
            labels=labels.astype(np.int32),
            label_lengths=label_lengths,
            weight=np.ones(self.batch, np.float32),
            sample_ids=rng.permutation(10_000)[: self.batch].astype(np.int32),
        )


class Flops(NamedTuple):
    """Floating-point operations of one step by part: a multiplication and an addition are two."""

    front_end: float
    projection: float
    positional: float
    encoder: float
    head: float

    @property
    def total(self) -> float:
        """All parts together."""
        return float(sum(self))


def forward_flops(config: ModelConfig, batch: int, samples: int) -> Flops:
    """Matrix products and convolutions of one forward pass; what is done once an element is left out.

    XLA's own count takes the body of a scan over layers or frames once, so it cannot be used here.
    """
    front_end, channels, steps = 0.0, 1, samples
    for width, stride, outputs in zip(config.conv_kernel, config.conv_stride, config.conv_dim, strict=True):
        steps = int(steps_after(steps, width, stride))
        front_end += 2.0 * batch * steps * width * channels * outputs
        channels = outputs
    rows, features = float(batch * steps), config.hidden_size
    group = features // config.num_conv_pos_embedding_groups
    products = 4 * features**2 + 2 * features * config.intermediate_size
    attention = 2 * steps * features
    if config.head == "ctc":
        head = 2.0 * rows * features * config.vocab_size
    else:
        head = 2.0 * rows * features * config.classifier_proj_size
    return Flops(
        front_end=front_end,
        projection=2.0 * rows * channels * features,
        positional=2.0 * rows * config.num_conv_pos_embeddings * group * features,
        encoder=2.0 * rows * config.num_hidden_layers * (products + attention),
        head=head,
    )


def training_flops(config: ModelConfig, batch: int, samples: int, *, freeze_feature_encoder: bool) -> Flops:
    """Forward and backward: a product costs twice its forward pass again, for the gradients of its two factors.

    A frozen front end has no backward pass, and the gradient of what comes into its projection is not needed then. What
    rematerialisation computes again is no useful work and is not counted.
    """
    forward = forward_flops(config, batch, samples)
    return Flops(
        front_end=forward.front_end * (1 if freeze_feature_encoder else 3),
        projection=forward.projection * (2 if freeze_feature_encoder else 3),
        positional=forward.positional * 3,
        encoder=forward.encoder * 3,
        head=forward.head * 3,
    )
