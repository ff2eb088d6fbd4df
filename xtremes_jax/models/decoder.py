"""The mBART decoder: causal self-attention, attention over encoded speech, and tied output, with a key/value cache."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from xtremes_jax.errors import InputError
from xtremes_jax.models.attention import attend
from xtremes_jax.models.decoder_config import POSITION_OFFSET, DecoderConfig
from xtremes_jax.models.layers import LayerNorm, Linear, activate
from xtremes_jax.models.masking import (
    CROSS_ATTENTION,
    CROSS_ATTENTION_OUTPUT,
    EMBEDDING_DROPOUT,
    LAYER_ACTIVATION,
    LAYER_ATTENTION,
    LAYER_ATTENTION_OUTPUT,
    LAYER_OUTPUT,
    Randomness,
    dropout,
    fold,
)
from xtremes_jax.models.products import compare
from xtremes_jax.models.stacked import check_remat, layer_function, stack

_NORM_EPS = 1e-5


class KeyValue(NamedTuple):
    """Keys and values of one attention: `[batch, places, heads, head_features]`, or with the layers before."""

    key: Float[Array, "*layers batch places heads head_features"]
    value: Float[Array, "*layers batch places heads head_features"]


class Cache(NamedTuple):
    """What decoding token by token keeps; the leading axis is the layer."""

    past: KeyValue
    """Of the tokens so far: `[layers, rows, max_length, heads, head_features]`, 0 past the last one."""
    memory: KeyValue
    """Of the encoded speech: `[layers, batch, frames, heads, head_features]`; `rows` is a multiple of `batch`."""


def _linear(config: DecoderConfig, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs) -> Linear:
    normal = jax.nn.initializers.normal(config.init_std)
    return Linear(inputs, outputs, kernel_init=normal, dtype=dtype, rngs=rngs)


class Embedding(nnx.Module):
    """A table of vectors, kept and looked up in float32."""

    def __init__(self, config: DecoderConfig, rows: int, *, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(config.init_std)
        self.embedding = nnx.Param(normal(rngs.params(), (rows, config.d_model), jnp.float32))

    def __call__(self, ids: Int[Array, "*rows"]) -> Float[Array, "*rows features"]:
        """The vectors of some rows; an id outside of the table gives a vector within it."""
        return jnp.take(self.embedding[...], ids, axis=0, mode="clip")


class DecoderAttention(nnx.Module):
    """Attention with its four projections; keys and values may come from elsewhere, and are made apart."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        width = config.d_model
        self.k_proj = _linear(config, width, width, dtype=dtype, rngs=rngs)
        self.v_proj = _linear(config, width, width, dtype=dtype, rngs=rngs)
        self.q_proj = _linear(config, width, width, dtype=dtype, rngs=rngs)
        self.out_proj = _linear(config, width, width, dtype=dtype, rngs=rngs)

    def keys_and_values(self, states: Float[Array, "batch places features"]) -> KeyValue:
        """What `states` can be looked up by, and what is found."""
        return KeyValue(self._split(self.k_proj(states)), self._split(self.v_proj(states)))

    def __call__(
        self,
        x: Float[Array, "batch queries features"],
        source: KeyValue,
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
        *,
        is_causal: bool = False,
    ) -> Float[Array, "batch queries features"]:
        """Every query looks at the first `lengths` places of `source` (None: all), or at those up to its own."""
        mixed = attend(
            self._split(self.q_proj(x)),
            source.key,
            source.value,
            lengths,
            is_causal=is_causal,
            dropout_rate=self.config.attention_dropout,
            randomness=randomness,
        )
        return self.out_proj(mixed.reshape(x.shape))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.config.decoder_attention_heads, -1)


class DecoderLayer(nnx.Module):
    """Self-attention, cross-attention and a feed-forward block, each behind a norm and beside a residual."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        width = config.d_model
        self.self_attn = DecoderAttention(config, dtype=dtype, rngs=rngs)
        self.self_attn_layer_norm = LayerNorm(width, epsilon=_NORM_EPS)
        self.encoder_attn = DecoderAttention(config, dtype=dtype, rngs=rngs)
        self.encoder_attn_layer_norm = LayerNorm(width, epsilon=_NORM_EPS)
        self.fc1 = _linear(config, width, config.decoder_ffn_dim, dtype=dtype, rngs=rngs)
        self.fc2 = _linear(config, config.decoder_ffn_dim, width, dtype=dtype, rngs=rngs)
        self.final_layer_norm = LayerNorm(width, epsilon=_NORM_EPS)

    def __call__(
        self,
        x: Float[Array, "batch tokens features"],
        hidden: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
    ) -> Float[Array, "batch tokens features"]:
        """All tokens of a sentence at once; `lengths` is in frames, `randomness` is folded for this layer."""
        normed = self.self_attn_layer_norm(x)
        source = self.self_attn.keys_and_values(normed)
        attended = self.self_attn(normed, source, None, fold(randomness, LAYER_ATTENTION), is_causal=True)
        x = x + dropout(attended, self.config.dropout, fold(randomness, LAYER_ATTENTION_OUTPUT))
        return self._read(x, self.encoder_attn.keys_and_values(hidden), lengths, randomness)

    def step(
        self,
        x: Float[Array, "rows 1 features"],
        position: Int[Array, ""],
        past: KeyValue,
        memory: KeyValue,
        lengths: Int[Array, " batch"] | None,
    ) -> tuple[Float[Array, "rows 1 features"], KeyValue]:
        """One token of each row, at `position`; returns its features and `past` with its key and value."""
        normed = self.self_attn_layer_norm(x)
        new = self.self_attn.keys_and_values(normed)
        past = KeyValue(
            *(jax.lax.dynamic_update_slice_in_dim(old, one, position, 1) for old, one in zip(past, new, strict=True))
        )
        seen = jnp.full((x.shape[0],), position + 1, jnp.int32)
        x = x + self.self_attn(normed, past, seen, None)
        # The beams of a clip are so many queries of its one memory, which is thus never repeated.
        beams = x.reshape(memory.key.shape[0], -1, x.shape[2])
        return self._read(beams, memory, lengths, None).reshape(x.shape), past

    def _read(self, x: Array, memory: KeyValue, lengths: Array | None, randomness: Randomness | None) -> Array:
        """Cross-attention and the feed-forward block."""
        config = self.config
        normed = self.encoder_attn_layer_norm(x)
        attended = self.encoder_attn(normed, memory, lengths, fold(randomness, CROSS_ATTENTION))
        x = x + dropout(attended, config.dropout, fold(randomness, CROSS_ATTENTION_OUTPUT))
        inner = activate(config.activation_function, self.fc1(self.final_layer_norm(x)))
        inner = dropout(inner, config.activation_dropout, fold(randomness, LAYER_ACTIVATION))
        return x + dropout(self.fc2(inner), config.dropout, fold(randomness, LAYER_OUTPUT))


class Decoder(nnx.Module):
    """`MBartForCausalLM` with cross-attention: embeddings, the scanned layers, and the tied output."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, remat: str, rngs: nnx.Rngs):
        check_remat(remat)
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.embed_tokens = Embedding(config, config.vocab_size, rngs=rngs)
        table = self.embed_tokens.embedding
        table[...] = table[...].at[config.pad_token_id].set(0.0)
        self.embed_positions = Embedding(config, config.max_position_embeddings + POSITION_OFFSET, rngs=rngs)
        self.layers = stack(lambda rngs: DecoderLayer(config, dtype=dtype, rngs=rngs), config.decoder_layers, rngs)
        self.layernorm_embedding = LayerNorm(config.d_model, epsilon=_NORM_EPS)
        self.layer_norm = LayerNorm(config.d_model, epsilon=_NORM_EPS)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        hidden: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
    ) -> Float[Array, "batch tokens vocabulary"]:
        """Logits of every token's successor, in float32.

        Args:
            tokens: the sentences so far, from the start token on; what is right of a token does not change its logits.
            hidden: encoded speech.
            lengths: valid frames of each row; None means all.
            randomness: keys of this step; None means evaluation.

        Raises:
            InputError: there are more tokens than positions.
        """
        self.check_length(tokens.shape[1])
        x = self._embed(tokens, jnp.arange(tokens.shape[1]))
        x = dropout(x, self.config.dropout, fold(randomness, EMBEDDING_DROPOUT))
        run, stacked = layer_function(
            self.layers,
            lambda layer, x, keys: layer(x, hidden, lengths, keys),
            randomness,
            layerdrop=self.config.decoder_layerdrop,
            remat=self.remat,
        )
        indices = jnp.arange(self.config.decoder_layers)
        x, _ = jax.lax.scan(lambda x, inputs: (run(inputs[0], x, inputs[1]), None), x, (stacked, indices))
        return self._logits(x)

    def new_cache(self, hidden: Float[Array, "batch frames features"], beams: int, max_length: int) -> Cache:
        """The cache before the first token, for `beams` rows to each row of `hidden`.

        Raises:
            InputError: `max_length` is more than there are positions.
        """
        self.check_length(max_length)
        config = self.config
        graphdef, stacked = nnx.split(self.layers)
        memory = jax.lax.map(lambda params: nnx.merge(graphdef, params).encoder_attn.keys_and_values(hidden), stacked)
        heads = config.decoder_attention_heads
        shape = (config.decoder_layers, hidden.shape[0] * beams, max_length, heads, config.d_model // heads)
        return Cache(KeyValue(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)), memory)

    def step(
        self,
        tokens: Int[Array, " rows"],
        position: Int[Array, ""],
        cache: Cache,
        lengths: Int[Array, " batch"] | None,
    ) -> tuple[Float[Array, "rows vocabulary"], Cache]:
        """Logits of the successors of the tokens at `position`, and the cache with these tokens in it."""
        graphdef, stacked = nnx.split(self.layers)

        def run(x: Array, inputs: Any) -> tuple[Array, KeyValue]:
            params, past, memory = inputs
            return nnx.merge(graphdef, params).step(x, position, past, memory, lengths)

        x = self._embed(tokens[:, None], position[None])
        x, past = jax.lax.scan(run, x, (stacked, cache.past, cache.memory))
        return self._logits(x)[:, 0], cache._replace(past=past)

    def check_length(self, length: int) -> None:
        """Raises `InputError` where a sentence is longer than the table of positions."""
        if length > self.config.max_position_embeddings:
            raise InputError(
                f"A sentence of {length} tokens is longer than the decoder's {self.config.max_position_embeddings} "
                "positions (max_position_embeddings). Set a lower maximum length."
            )

    def _embed(self, tokens: Int[Array, "batch tokens"], positions: Int[Array, " tokens"]) -> Array:
        """Embeddings of tokens and of positions, normalised; in the compute dtype."""
        vectors = self.embed_tokens(tokens)
        # As in PyTorch, padding does not train its own embedding (though the tied output does).
        vectors = jnp.where((tokens == self.config.pad_token_id)[:, :, None], jax.lax.stop_gradient(vectors), vectors)
        if self.config.scale_embedding:
            vectors = vectors * self.config.d_model**0.5
        vectors = vectors + self.embed_positions(positions + POSITION_OFFSET)
        return self.layernorm_embedding(vectors).astype(self.dtype)

    def _logits(self, x: Float[Array, "batch tokens features"]) -> Float[Array, "batch tokens vocabulary"]:
        """The last norm, and the product with the embeddings of all tokens, summed in float32."""
        return compare(self.layer_norm(x), self.embed_tokens.embedding[...])
