"""The Transformer encoder: positional convolution, then layers that are stacked and scanned."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from xtremes_jax.models.attention import SelfAttention
from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.language_adapter import LanguageAdapter
from xtremes_jax.models.layers import LayerNorm, activate, linear
from xtremes_jax.models.masking import (
    LAYER_ACTIVATION,
    LAYER_ATTENTION,
    LAYER_ATTENTION_OUTPUT,
    LAYER_OUTPUT,
    POSITION_DROPOUT,
    Randomness,
    dropout,
    fold,
    frame_mask,
    zero_unless,
)
from xtremes_jax.models.positional import PositionalConvolution
from xtremes_jax.models.stacked import check_remat, layer_function, stack


class FeedForward(nnx.Module):
    """Two linear maps with an activation between them.

    Args:
        config: of the model.
        width: of input and output; by default the encoder's.
        activation: by default `hidden_act`.
    """

    def __init__(self, config: ModelConfig, *, width: int = 0, activation: str = "", dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.activation = activation or config.hidden_act
        width = width or config.hidden_size
        self.intermediate_dense = linear(config, width, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.output_dense = linear(config, config.intermediate_size, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch frames features"], randomness: Randomness | None
    ) -> Float[Array, "batch frames features"]:
        """Each frame by itself; `activation_dropout` inside and `hidden_dropout` after."""

        def map_back(x: Array) -> Array:
            x = activate(self.activation, x)
            x = dropout(x, self.config.activation_dropout, fold(randomness, LAYER_ACTIVATION))
            return self.output_dense(x)

        # The gradient computes the activation again: that costs less than to write and read the widest array there is.
        x = jax.checkpoint(map_back, prevent_cse=False)(self.intermediate_dense(x))
        return dropout(x, self.config.hidden_dropout, fold(randomness, LAYER_OUTPUT))


class EncoderLayer(nnx.Module):
    """Self-attention and a feed-forward block, each with a residual; norms before them (stable) or after.

    In the stable layout an adapter, with a residual of its own, may come last.
    """

    attention_kind = SelfAttention

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.attention = self.attention_kind(config, dtype=dtype, rngs=rngs)
        self.layer_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        has_adapter = config.has_language_adapters
        self.adapter_layer = LanguageAdapter(config, dtype=dtype, rngs=rngs) if has_adapter else None

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        places: Any = None,
    ) -> Float[Array, "batch frames features"]:
        """One layer; `lengths` is in frames, `randomness` is already folded for this layer, `places` the encoder's."""
        stable = self.config.do_stable_layer_norm
        seen = self.layer_norm(x) if stable else x
        attended = self.attention(seen, lengths, fold(randomness, LAYER_ATTENTION), places)
        x = x + dropout(attended, self.config.hidden_dropout, fold(randomness, LAYER_ATTENTION_OUTPUT))
        if stable:
            x = x + self.feed_forward(self.final_layer_norm(x), randomness)
            return x if self.adapter_layer is None else x + self.adapter_layer(x)
        x = self.layer_norm(x)
        return self.final_layer_norm(x + self.feed_forward(x, randomness))


class Encoder(nnx.Module):
    """Positions, then the scanned layers. Families differ in the classes of both, and in what layers know of places."""

    positions_kind = PositionalConvolution
    layer_kind = EncoderLayer

    def __init__(self, config: ModelConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs):
        check_remat(remat)
        self.config = config
        self.remat = remat
        self.pos_conv_embed = self.positions_kind(config, dtype=dtype, rngs=rngs)
        self.layer_norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        layer = functools.partial(self.layer_kind, config, dtype=dtype)
        self.layers = stack(lambda rngs: layer(rngs=rngs), config.num_hidden_layers, rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        layer_weights: Float[Array, " layers_and_input"] | None = None,
    ) -> tuple[Float[Array, "batch frames features"], Float[Array, "batch frames features"] | None]:
        """Encodes frames.

        Args:
            x: projected frames.
            lengths: valid frames of each row; None means all.
            randomness: keys of this step; None means evaluation.
            layer_weights: weights of the first layer's input and of every layer's output.

        Returns:
            The last hidden state, and the weighted sum in float32 (None without `layer_weights`). As in Transformers 5,
            the last norm of the stable layout is in the former and not in the latter.
        """
        valid = None if lengths is None else frame_mask(lengths, x.shape[1])[:, :, None]
        x = zero_unless(valid, x)
        x = self.add_positions(x, valid)
        if not self.config.do_stable_layer_norm:
            x = self.layer_norm(x)
        x = dropout(x, self.config.hidden_dropout, fold(randomness, POSITION_DROPOUT))
        x, mixed = self._scan_layers(x, lengths, randomness, layer_weights)
        is_last = self.config.do_stable_layer_norm and self.layer_norm is not None
        return (self.layer_norm(x) if is_last else x), mixed

    def add_positions(
        self, x: Float[Array, "batch frames features"], valid: Bool[Array, "batch frames 1"] | None
    ) -> Float[Array, "batch frames features"]:
        """Adds to each frame what tells its place. Frames that are not valid are 0, as a clip's surroundings are."""
        return x + self.pos_conv_embed(x)

    def places(self, num_frames: int) -> Any:
        """What all layers are told of where their frames are; nothing here, as the convolution has told already."""
        return None

    def _scan_layers(
        self, x: Array, lengths: Array | None, randomness: Randomness | None, layer_weights: Array | None
    ) -> tuple[Array, Array | None]:
        """Runs the layers in turn, adding up the weighted sum of hidden states on the way where it is asked for."""
        places = self.places(x.shape[1])
        run, stacked = layer_function(
            self.layers,
            lambda layer, x, keys: layer(x, lengths, keys, places),
            randomness,
            layerdrop=self.config.layerdrop,
            remat=self.remat,
        )

        def step(carry: tuple[Array, Array | None], inputs: tuple[Any, Array, Array | None]) -> tuple[Any, None]:
            x, mixed = carry
            params, index, weight = inputs
            x = run(params, x, index)
            return (x, None if mixed is None else mixed + weight * x.astype(jnp.float32)), None

        indices = jnp.arange(self.config.num_hidden_layers)
        mixed = None if layer_weights is None else layer_weights[0] * x.astype(jnp.float32)
        weights = None if layer_weights is None else layer_weights[1:]
        carry, _ = jax.lax.scan(step, (x, mixed), (stacked, indices, weights))
        return carry
