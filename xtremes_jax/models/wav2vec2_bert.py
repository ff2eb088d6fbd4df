"""w2v-BERT 2.0 (Barrault et al. 2023): Conformer layers on log-mel features, with causal convolutions."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int16

from xtremes_jax.errors import InputError
from xtremes_jax.models.adapter import Adapter
from xtremes_jax.models.backbone import Backbone
from xtremes_jax.models.config import LANGUAGE_ADAPTER, ModelConfig, steps_after
from xtremes_jax.models.config_checks import ACTIVATIONS
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.encoder import FeedForward
from xtremes_jax.models.layers import Convolution, LayerNorm
from xtremes_jax.models.log_mel import FEATURES, STACKED_STEP, STACKED_WINDOW, log_mel
from xtremes_jax.models.masking import (
    BEFORE_ADAPTER,
    LAYER_ATTENTION,
    LAYER_ATTENTION_OUTPUT,
    Randomness,
    dropout,
    fold,
    zero_unless,
)
from xtremes_jax.models.naming import CONV, Rule, layers, norm
from xtremes_jax.models.naming import linear as linear_names
from xtremes_jax.models.products import compare
from xtremes_jax.models.relative import by_distance
from xtremes_jax.models.wav2vec2_conformer import (
    TABLE as CONFORMER,
)
from xtremes_jax.models.wav2vec2_conformer import (
    ConformerAttention,
    ConformerLayer,
    ConvolutionModule,
    LayersAlone,
    Wav2Vec2ConformerConfig,
)


@dataclass(frozen=True)
class Wav2Vec2BertConfig(Wav2Vec2ConformerConfig):
    """One w2v-BERT 2.0; field names and defaults are those of `transformers.Wav2Vec2BertConfig`."""

    model_type: ClassVar[str] = "wav2vec2-bert"
    family: ClassVar[str] = "w2v-BERT 2.0"
    architecture: ClassVar[str] = "Wav2Vec2Bert"
    root: ClassVar[str] = "wav2vec2_bert"
    feature_extractor: ClassVar[str] = "SeamlessM4TFeatureExtractor"
    processor: ClassVar[str] = "Wav2Vec2BertProcessor"
    positions: ClassVar[tuple[str, ...]] = ("relative_key", "relative", "rotary")
    lacking: ClassVar[tuple[str, ...]] = (
        "conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation",
        "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm",
        LANGUAGE_ADAPTER,
    )  # fmt: skip

    conv_dim: tuple[int, ...] = (FEATURES,)
    """Not a convolution, but as many numbers a frame, of as many samples, and as many samples further on, as if
    log-mel features were what one had made; so it is with the next two fields."""
    conv_kernel: tuple[int, ...] = (STACKED_WINDOW,)
    """Samples that a frame is made of."""
    conv_stride: tuple[int, ...] = (STACKED_STEP,)
    """Samples from one frame to the next."""
    num_conv_pos_embeddings: int = 1
    """There is no positional convolution."""
    num_conv_pos_embedding_groups: int = 1
    """There is no positional convolution."""
    feature_projection_input_dim: int = FEATURES
    """Log-mel features of a frame: always 160."""

    hidden_size: int = 1024
    """Width of the encoder."""
    num_hidden_layers: int = 24
    """Number of Conformer layers."""
    num_attention_heads: int = 16
    """Attention heads per layer; divides `hidden_size`."""
    intermediate_size: int = 4096
    """Width of the feed-forward blocks."""
    hidden_act: str = "swish"
    """Activation of the feed-forward blocks and of the convolutions."""
    position_embeddings_type: str = "relative_key"
    """`relative_key` (Shaw et al. 2018), `relative` (Dai et al. 2019), `rotary` (Su et al. 2021), or `none`, which is
    null in a `config.json`."""
    left_max_position_embeddings: int = 64
    """`relative_key`: frames before the query from which on all are as far as this one."""
    right_max_position_embeddings: int = 8
    """The same of frames after it."""

    num_adapter_layers: int = 1
    """Number of layers of the adapter."""
    adapter_act: str = "relu"
    """Activation of their feed-forward blocks."""
    use_intermediate_ffn_before_adapter: bool = False
    """Whether another half of a feed-forward block stands before the adapter."""

    hidden_dropout: float = 0.0
    """Dropout rate before the layers and after the feed-forward blocks."""
    activation_dropout: float = 0.0
    """Dropout rate inside the feed-forward blocks."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention probabilities, and after the attention."""
    classifier_proj_size: int = 768
    """Width of the projection before pooling, in the heads for classification and retrieval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_projection_input_dim != FEATURES:
            raise InputError(
                f"feature_projection_input_dim is {self.feature_projection_input_dim}; only {FEATURES} log-mel "
                "features are implemented, which is what published models read."
            )
        if not self.mask_padding:
            raise InputError(
                "The padding of w2v-BERT 2.0 is always masked: log-mel features have no silence that could be taken "
                "for the clip's own. Leave out --mask_padding False, or set return_attention_mask to true in the "
                "checkpoint's preprocessor_config.json (processor_config.json, if that holds it)."
            )
        if self.adapter_act not in ACTIVATIONS:
            raise InputError(f"adapter_act is {shown(self.adapter_act)}; known are {', '.join(ACTIVATIONS)}.")
        if self.use_intermediate_ffn_before_adapter and not self.add_adapter:
            raise InputError(
                "use_intermediate_ffn_before_adapter is true and add_adapter false; Transformers has no such model. "
                "Set both or neither in config.json."
            )
        if self.add_adapter and self.adapter_stride // 2 != self.adapter_kernel_size // 2:
            raise InputError(
                f"adapter_kernel_size is {self.adapter_kernel_size} and adapter_stride {self.adapter_stride}: "
                "Transformers pads by half of the latter and counts frames by half of the former, which here differ. "
                "Make the halves equal, as of 3 and 2."
            )
        width = self.output_width // self.num_attention_heads
        if self.add_adapter and width * self.num_attention_heads != self.output_width:
            raise InputError(
                f"num_attention_heads ({self.num_attention_heads}) does not divide output_hidden_size "
                f"({self.output_width})."
            )

    @property
    def inner_norm_eps(self) -> float:
        """Epsilon of the norms in layers."""
        return self.layer_norm_eps

    def num_output_frames(self, num_samples: Any) -> Any:
        """Frames that the whole encoder makes of `num_samples` samples: with an adapter fewer than `num_frames`."""
        steps = self.num_frames(num_samples)
        for _ in range(self.num_adapter_layers if self.add_adapter else 0):
            steps = self.adapter_steps(steps)
        return steps

    def adapter_steps(self, steps: Any) -> Any:
        """Frames that one layer of the adapter makes of `steps`; 0 of none."""
        padded = steps + 2 * (self.adapter_kernel_size // 2)
        return steps_after(padded, self.adapter_kernel_size, self.adapter_stride) * (steps > 0)

    @property
    def num_convolutional(self) -> int:
        """The front end has no parameters."""
        return 0

    @property
    def num_positional(self) -> int:
        """What tells places is in the layers."""
        return 0

    @property
    def num_of_layer(self) -> int:
        """Elements of the matrices and kernels of one layer."""
        count = super().num_of_layer
        if self.position_embeddings_type == "relative_key":
            count += self.num_distances * (self.hidden_size // self.num_attention_heads)
        return count

    @property
    def num_of_adapter_layer(self) -> int:
        """Elements of the matrices and kernels of one layer of the adapter."""
        width = self.output_width
        return width * (4 * self.adapter_kernel_size * width + 4 * width + 2 * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """Elements of all matrices and kernels."""
        before = self.add_adapter and self.use_intermediate_ffn_before_adapter
        return super().num_parameters + before * 2 * self.hidden_size * self.intermediate_size

    @property
    def num_distances(self) -> int:
        """Distances that `relative_key` tells apart."""
        return self.left_max_position_embeddings + 1 + self.right_max_position_embeddings


class KeyedAttention(ConformerAttention):
    """Self-attention that may also have a vector for each distance (Shaw et al. 2018), of keys alone."""

    def __init__(self, config: Wav2Vec2BertConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        if self.kind == "relative_key":
            normal = jax.nn.initializers.normal(config.initializer_range)
            shape = (config.num_distances, config.hidden_size // config.num_attention_heads)
            self.distance_embedding = nnx.Param(normal(rngs.params(), shape, jnp.float32))

    def bias(
        self, query: Float[Array, "batch frames heads head_features"], places: Any
    ) -> Float[Array, "batch heads frames frames"] | None:
        """As the Conformer's. By vectors: the product of each query with that of the distance, the farthest of which
        stands for all that are farther."""
        if self.kind != "relative_key":
            return super().bias(query, places)
        frames = query.shape[1]
        config = self.config
        farthest = (config.left_max_position_embeddings, config.right_max_position_embeddings)
        missing = [frames - 1 - count for count in farthest]
        first, last = (max(-count, 0) for count in missing)
        vectors = self.distance_embedding[...][first : config.num_distances - last]
        asked = jnp.swapaxes(query, 1, 2) * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
        scores = compare(asked, vectors)
        beyond = tuple(max(count, 0) for count in missing)
        return by_distance(jnp.pad(scores, [(0, 0)] * 3 + [beyond], mode="edge"))


class CausalConvolutionModule(ConvolutionModule):
    """The Conformer's, but that no frame sees those after it, and that a layer norm follows."""

    is_causal = True
    inner_norm = "depthwise_layer_norm"

    @staticmethod
    def inner_norm_kind(config: Wav2Vec2BertConfig) -> nnx.Module:
        """That norm."""
        return LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)


class Wav2Vec2BertLayer(ConformerLayer):
    """A Conformer layer of these parts."""

    attention_kind = KeyedAttention
    convolution_kind = CausalConvolutionModule


class Wav2Vec2BertEncoder(LayersAlone):
    """The layers, with no norm behind them."""

    layer_kind = Wav2Vec2BertLayer

    def __init__(self, config: Wav2Vec2BertConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        self.layer_norm = None


class AttentiveAdapterLayer(nnx.Module):
    """A Transformer layer between strided convolutions: one of what it looks at, one of what its result is added to."""

    def __init__(self, config: Wav2Vec2BertConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        width = config.output_width
        for name in ("residual", "self_attn", "ffn"):
            setattr(self, f"{name}_layer_norm", LayerNorm(width, epsilon=config.layer_norm_eps))
        shape = dict(width=config.adapter_kernel_size, stride=config.adapter_stride, use_bias=True)
        for name in ("residual", "self_attn"):
            setattr(self, f"{name}_conv", Convolution(width, 2 * width, **shape, dtype=dtype, rngs=rngs))
        self.self_attn = ConformerAttention(config, width=width, kind="none", dtype=dtype, rngs=rngs)
        self.ffn = FeedForward(config, width=width, activation=config.adapter_act, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        valid: Bool[Array, "batch frames 1"] | None,
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
    ) -> Float[Array, "batch fewer features"]:
        """Shortens the frames; `lengths` are those of the result, `randomness` is folded for this layer."""
        seen = self._shortened("self_attn", x, valid)
        attended = self.self_attn(seen, lengths, fold(randomness, LAYER_ATTENTION), None)
        attended = dropout(attended, self.config.conformer_conv_dropout, fold(randomness, LAYER_ATTENTION_OUTPUT))
        x = self._shortened("residual", x, valid) + attended
        return x + self.ffn(self.ffn_layer_norm(x), randomness)

    def _shortened(self, name: str, x: Array, valid: Array | None) -> Array:
        """The normalised frames, convolved by a kernel of that name; half of its channels gate the others."""
        beside = self.config.adapter_stride // 2
        x = zero_unless(valid, getattr(self, f"{name}_layer_norm")(x))
        x = getattr(self, f"{name}_conv")(jnp.pad(x, ((0, 0), (beside, beside), (0, 0))))
        kept, gate = jnp.split(x, 2, axis=2)
        return kept * jax.nn.sigmoid(gate)


class AttentiveAdapter(Adapter):
    """Perhaps half of a feed-forward block, a projection where the widths differ, then the layers."""

    layer_kind = AttentiveAdapterLayer

    def __init__(self, config: Wav2Vec2BertConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        if config.output_width != config.hidden_size:
            self.proj_layer_norm = LayerNorm(config.output_width, epsilon=config.layer_norm_eps)
        is_used = config.use_intermediate_ffn_before_adapter
        self.before = FeedForward(config, activation="relu", dtype=dtype, rngs=rngs) if is_used else None

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None = None,
    ) -> Float[Array, "batch fewer outputs"]:
        """As `Adapter`."""
        if self.before is not None:
            x = x + 0.5 * self.before(x, fold(randomness, BEFORE_ADAPTER))
        return super().__call__(x, lengths, randomness)


class Wav2Vec2Bert(Backbone):
    """The model without a head (`Wav2Vec2BertModel`)."""

    encoder_kind = Wav2Vec2BertEncoder
    adapter_kind = AttentiveAdapter

    @staticmethod
    def front_end(config: ModelConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs) -> None:
        """Log-mel features have no parameters."""
        return None

    def extract_frames(
        self,
        audio: Int16[Array, "batch samples"] | Float[Array, "batch samples"],
        audio_lengths: Int[Array, " batch"] | None,
    ) -> Float[Array, "batch frames channels"]:
        """Log-mel features, float32 whatever the compute dtype; `normalize_waveform` plays no part."""
        return log_mel(audio, audio_lengths)


_ADAPTER_LAYER = "adapter.layers.{i}"
TABLE: tuple[Rule, ...] = (
    *CONFORMER,
    *(
        rule.below("encoder", "encoder")
        for rule in layers(
            norm("conv_module.depthwise_layer_norm"),
            (Rule("self_attn.distance_embedding", "self_attn.distance_embedding.weight"),),
        )
    ),
    *(
        rule.below(_ADAPTER_LAYER, _ADAPTER_LAYER)
        for rules in (
            *(norm(f"{name}_layer_norm") for name in ("residual", "self_attn", "ffn")),
            *(
                (
                    Rule(f"{name}.kernel", f"{name}.weight", CONV),
                    Rule(f"{name}.bias", f"{name}.bias"),
                )
                for name in ("residual_conv", "self_attn_conv")
            ),
            *(linear_names(f"self_attn.linear_{name}") for name in ("q", "k", "v", "out")),
            *(linear_names(f"ffn.{name}") for name in ("intermediate_dense", "output_dense")),
        )
        for rule in rules
    ),
    *(
        rule
        for name in ("intermediate_dense", "output_dense")
        for rule in linear_names(f"adapter.before.{name}", f"intermediate_ffn.{name}")
    ),
)
"""Every parameter of w2v-BERT 2.0 below the root of a checkpoint's names, where what stands before the adapter is not
in it."""
