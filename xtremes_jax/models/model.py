"""The whole model: waveforms in, logits out, and the pure helpers that the training half stands on."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Int16, Key

from xtremes_jax.errors import InputError
from xtremes_jax.models.backbone import Backbone, HostOrDevice
from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.families import family_of
from xtremes_jax.models.heads import classification_logits, ctc_logits, unit_embeddings
from xtremes_jax.models.layers import linear
from xtremes_jax.models.lora import Lora, adapt
from xtremes_jax.models.masking import Randomness
from xtremes_jax.models.translation import TranslationModel
from xtremes_jax.models.translation_config import TranslationConfig

Params = dict[str, Any]
"""A nested dict of arrays, keyed by strings as the modules are named."""


class ModelOutput(NamedTuple):
    """What a model says of a batch."""

    logits: Float[Array, "batch frames vocabulary"] | Float[Array, "batch labels"]
    """float32; for CTC a distribution per frame, of which the first `logit_lengths` of each row count; for retrieval
    the embeddings, `[batch, embedding]` of length 1."""
    logit_lengths: Int[Array, " batch"] | None
    """Valid frames of each row for CTC; None for classification and retrieval."""
    logit_scale: Float[Array, ""] | None = None
    """Retrieval: the learned logarithm of what cosines are multiplied with in the contrastive loss."""


class SpeechModel(nnx.Module):
    """A speech encoder with a head: `model(audio, audio_lengths)` takes raw 16 kHz audio and gives logits.

    Parameters are named `encoder.…`, below which and in the head they are named as in Transformers; all are `nnx.Param`
    in float32 and there is no other state, so `split_params` and `merge` turn a model into a pure function of its
    parameters. Build it with `build_model`.
    """

    def __init__(self, config: ModelConfig, *, dtype: Any = jnp.float32, remat: str = "none", rngs: nnx.Rngs):
        if config.head is None:
            raise InputError(
                "This configuration has no head. Choose one with config_from_huggingface(..., head='ctc' or "
                "'classification' or 'retrieval'), or load a checkpoint that was fine-tuned."
            )
        self.config = config
        self.encoder = family_of(config).backbone(config, dtype=dtype, remat=remat, rngs=rngs)
        if config.head == "ctc":
            # In half precision the products are still summed, and the logits given, in float32.
            self.lm_head = linear(
                config,
                config.output_width,
                config.vocab_size,
                dtype=dtype,
                rngs=rngs,
                output_dtype=jnp.float32,
            )
            return
        projected = config.classifier_proj_size
        self.projector = linear(config, config.hidden_size, projected, dtype=dtype, rngs=rngs)
        self.classifier = linear(config, projected, config.num_labels, dtype=jnp.float32, rngs=rngs)
        if config.use_weighted_layer_sum:
            states = config.num_hidden_layers + 1
            self.layer_weights = nnx.Param(jnp.full((states,), 1.0 / states, jnp.float32))
        if config.head == "retrieval":
            self.logit_scale = nnx.Param(jnp.full((), config.logit_scale, jnp.float32))

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        return self.encoder

    def __call__(
        self,
        audio: Int16[HostOrDevice, "batch samples"] | Float[HostOrDevice, "batch samples"] | None,
        audio_lengths: Int[HostOrDevice, " batch"] | None = None,
        *,
        randomness: Randomness | None = None,
        frames: Float[HostOrDevice, "batch frames channels"] | None = None,
    ) -> ModelOutput:
        """Computes logits.

        Args:
            audio: 16 kHz waveforms, int16 or floating point in [-1, 1]; the model's own normalisation is applied.
            audio_lengths: valid samples of each row; every clip then gives what it gives alone (but see
                `ModelConfig.mask_padding`), and rows of length 0 give finite numbers. None: all samples are valid and
                nothing is masked.
            randomness: keys of a training step (dropout, SpecAugment, layerdrop); None means evaluation.
            frames: what `backbone.extract_frames` made of the audio, which then is not looked at.

        Raises:
            InputError: the arrays are too short for a single frame.
        """
        if audio_lengths is not None:
            audio_lengths = jnp.asarray(audio_lengths)
        config = self.config
        if frames is None:
            frames = self.encoder.extract_frames(jnp.asarray(audio), audio_lengths)
        weighted = config.head != "ctc" and config.use_weighted_layer_sum
        weights = jax.nn.softmax(self.layer_weights[...]) if weighted else None
        hidden, lengths = self.encoder(jnp.asarray(frames), audio_lengths, randomness, weights)
        if config.head == "classification":
            return ModelOutput(classification_logits(self.projector, self.classifier, hidden, lengths), None)
        if config.head == "retrieval":
            embeddings = unit_embeddings(self.projector, self.classifier, hidden, lengths)
            return ModelOutput(embeddings, None, self.logit_scale[...])
        logits = ctc_logits(self.lm_head, hidden, dropout_rate=config.final_dropout, randomness=randomness)
        if lengths is None:
            lengths = jnp.full((logits.shape[0],), logits.shape[1], jnp.int32)
        return ModelOutput(logits, lengths)


AnyConfig = ModelConfig | TranslationConfig
AnyModel = SpeechModel | TranslationModel


def build_model(
    config: AnyConfig,
    *,
    seed: int | Key[Array, ""] = 0,
    dtype: Any = jnp.float32,
    remat: str = "none",
    lora: Lora | None = None,
) -> AnyModel:
    """A model with newly drawn float32 parameters, distributed as Transformers draws them.

    Args:
        config: architecture and head, or encoder and decoder.
        seed: an integer or a JAX key; the same seed gives the same parameters. With a key this can be traced, so that
            `jax.jit` with `out_shardings` may create large parameters where they will live.
        dtype: what is computed in (float32, bfloat16 or float16); parameters, waveform statistics, norms, softmax and
            logits are float32 in any case.
        remat: a name of `stacked.REMAT_POLICIES`: "none", "full" or "dots".
        lora: how linear maps of the encoder's layers are adapted, if they are; all else is drawn as without.

    Raises:
        InputError: the configuration has no head, the policy is unknown, or there is no such map to adapt.
    """
    kind = TranslationModel if isinstance(config, TranslationConfig) else SpeechModel
    rngs = nnx.Rngs(seed)
    model = kind(config, dtype=dtype, remat=remat, rngs=rngs)
    if lora is not None:
        adapt(model.encoder.encoder.layers, lora, rngs)
    return model


def abstract_model(
    config: AnyConfig, *, dtype: Any = jnp.float32, remat: str = "none", lora: Lora | None = None
) -> AnyModel:
    """The same model with `jax.ShapeDtypeStruct` in place of arrays: nothing is computed or allocated."""
    return nnx.eval_shape(lambda: build_model(config, seed=jax.random.key(0), dtype=dtype, remat=remat, lora=lora))


def split_params(model: AnyModel) -> tuple[Any, Params]:
    """A model as a hashable graph definition (static under `jax.jit`) and a nested dict of arrays."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: Any, params: Params) -> AnyModel:
    """The inverse of `split_params`; cheap enough to be called inside every step."""
    return nnx.merge(graphdef, params)


def flatten_params(params: Params, prefix: str = "") -> dict[str, Any]:
    """A nested dict as a flat one, with dotted names: `encoder.encoder.layers.attention.q_proj.kernel`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten_params(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def unflatten_params(flat: Mapping[str, Any]) -> Params:
    """The inverse of `flatten_params`."""
    params: Params = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return params


def path_name(path: str | Sequence[Any]) -> str:
    """The dotted name of a parameter, from that name, its keys, or a key path of `jax.tree_util`."""
    if isinstance(path, str):
        return path
    return ".".join(str(getattr(key, "key", key)) for key in path)


def is_feature_encoder(path: str | Sequence[Any]) -> bool:
    """Whether a parameter belongs to the convolutional front end, which `freeze_feature_encoder` freezes."""
    return path_name(path).startswith("encoder.feature_extractor.")


def is_language_adapter(path: str | Sequence[Any]) -> bool:
    """Whether a parameter, by our name or by Transformers', belongs to the adapters in the encoder's layers."""
    return ".adapter_layer." in path_name(path)


def is_fixed(path: str | Sequence[Any]) -> bool:
    """Whether a parameter never trains: a batch norm's statistics, or a part that a family stores without using it."""
    *parents, leaf = path_name(path).split(".")
    return leaf in ("running_mean", "running_var") or "unused" in parents


def decays(path: str | Sequence[Any]) -> bool:
    """Whether weight decay applies to a parameter: as in Transformers' Trainer, to all but biases and norms.

    Both parts of the weight norm, `masked_spec_embed` and `layer_weights` decay; the temperature does not.
    """
    *parents, leaf = path_name(path).split(".")
    is_norm = any(name.endswith("_norm") or name.startswith("layernorm") or name == "norm" for name in parents)
    return "bias" not in leaf and leaf != "logit_scale" and not is_norm
