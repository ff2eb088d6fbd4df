"""Multi-head attention (Vaswani et al. 2017) over frames, with the frames past a clip's length masked, or causal."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.layers import PRODUCT, linear
from xtremes_jax.models.masking import Randomness, dropout, frame_mask

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of a masked key: finite, so that a row in which every key is masked gives a mean instead of NaN."""

_FEW_QUERIES = 16
"""Fewer than this, as in step-by-step decoding, leave the fused kernel nothing to save."""


def attend(
    query: Float[Array, "batch queries heads head_features"],
    key: Float[Array, "batch frames heads head_features"],
    value: Float[Array, "batch frames heads head_features"],
    lengths: Int[Array, " batch"] | None,
    *,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    randomness: Randomness | None = None,
) -> Float[Array, "batch queries heads head_features"]:
    """Scaled dot-product attention, with its softmax in float32.

    Args:
        query, key, value: in the compute dtype.
        lengths: keys (frames) that count in each row; None means all. Rows of length 0 give finite numbers.
        is_causal: whether a query looks only at the keys up to its own place; there are as many of both, then.
        dropout_rate: of the attention probabilities; where none applies, cuDNN's fused kernel is used on GPUs that have
            it and for the dtypes and head sizes that it takes.
        randomness: keys already folded for this purpose; None means no dropout.
    """
    if (randomness is None or dropout_rate == 0.0) and _use_cudnn(query):
        # The fused kernel is not asked what it makes of a row without any key: such rows look at their first frame.
        counted = None if lengths is None else jnp.maximum(lengths, 1)
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=is_causal, key_value_seq_lengths=counted, implementation="cudnn"
        )
    # Not `implementation="xla"`, whose float16 gradient does not compile on CPUs.
    options = (is_causal, 0.0 if randomness is None else dropout_rate)
    return _attend_explicitly(query, key, value, lengths, randomness, *options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend_explicitly(
    query: Array,
    key: Array,
    value: Array,
    lengths: Array | None,
    randomness: Randomness | None,
    is_causal: bool,
    dropout_rate: float,
) -> Array:
    """`attend` by its definition. The gradient keeps no probabilities, `[batch, heads, queries, frames]`, but computes
    them again, as FlashAttention does (Dao et al. 2022): writing and reading them costs more than that."""
    return _attend_forward(query, key, value, lengths, randomness, is_causal, dropout_rate)[0]


def _scores(query: Array, key: Array, lengths: Array | None, is_causal: bool) -> tuple[Array, Array | None]:
    """Scores `[batch, heads, queries, frames]` in float32, and which of them count (None: all)."""
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", scaled, key, preferred_element_type=jnp.float32)
    counts = None if lengths is None else frame_mask(lengths, key.shape[1])[:, None, None, :]
    if is_causal:
        past = jnp.tri(query.shape[1], key.shape[1], dtype=bool)
        counts = past if counts is None else counts & past
    return (scores if counts is None else jnp.where(counts, scores, _MASKED)), counts


def _attend_forward(
    query: Array,
    key: Array,
    value: Array,
    lengths: Array | None,
    randomness: Randomness | None,
    is_causal: bool,
    dropout_rate: float,
) -> tuple[Array, tuple]:
    scores, _ = _scores(query, key, lengths, is_causal)
    top = jnp.max(scores, axis=-1, keepdims=True, initial=_MASKED)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = dropout(weights, dropout_rate, randomness).astype(value.dtype)
    # Divided by their sum afterwards: the result has fewer elements than the weights.
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value, preferred_element_type=jnp.float32)
    mixed = (mixed / jnp.swapaxes(total, 1, 2)).astype(value.dtype)
    kept = checkpoint_name((mixed, top, total), PRODUCT)
    return kept[0], (query, key, value, lengths, randomness, *kept)


def _attend_backward(is_causal: bool, dropout_rate: float, saved: tuple, gradient: Array) -> tuple:
    query, key, value, lengths, randomness, mixed, top, total = saved
    scores, counts = _scores(query, key, lengths, is_causal)
    probabilities = jnp.exp(scores - top) / total
    dropped = dropout(probabilities, dropout_rate, randomness).astype(value.dtype)
    of_value = jnp.einsum("bhqk,bqhd->bkhd", dropped, gradient)
    of_probabilities = jnp.einsum("bqhd,bkhd->bhqk", gradient, value, preferred_element_type=jnp.float32)
    of_probabilities = dropout(of_probabilities, dropout_rate, randomness)
    # The mean of the probabilities' gradients, which the softmax takes off, is that of the result along itself.
    along = jnp.einsum("bqhd,bqhd->bhq", gradient, mixed, preferred_element_type=jnp.float32)[..., None]
    of_scores = probabilities * (of_probabilities - along)
    if counts is not None:
        of_scores = jnp.where(counts, of_scores, 0.0)
    of_scores = of_scores.astype(query.dtype)
    scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    of_query = jnp.einsum("bhqk,bkhd->bqhd", of_scores, key) * scale
    of_key = jnp.einsum("bhqk,bqhd->bkhd", of_scores, query * scale)
    return of_query, of_key, of_value, None, None


_attend_explicitly.defvjp(_attend_forward, _attend_backward)


def _use_cudnn(query: Float[Array, "batch queries heads head_features"]) -> bool:
    """Whether cuDNN's fused attention takes these arrays on this process's devices (NVIDIA, Ampere or newer)."""
    halves = query.dtype in (jnp.bfloat16, jnp.float16)
    if query.shape[1] < _FEW_QUERIES:
        return False
    if not halves or query.shape[-1] % 8 or query.shape[-1] > 128 or jax.default_backend() != "gpu":
        return False
    major = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    return major.isdigit() and int(major) >= 8  # ROCm's devices have names here, such as gfx90a


class SelfAttention(nnx.Module):
    """Self-attention with its four projections."""

    def __init__(self, config: ModelConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        width = config.hidden_size
        self.q_proj = linear(config, width, width, dtype=dtype, rngs=rngs)
        self.k_proj = linear(config, width, width, dtype=dtype, rngs=rngs)
        self.v_proj = linear(config, width, width, dtype=dtype, rngs=rngs)
        self.out_proj = linear(config, width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch frames features"],
        lengths: Int[Array, " batch"] | None,
        randomness: Randomness | None,
    ) -> Float[Array, "batch frames features"]:
        """Every frame looks at the valid frames of its row; `lengths` is in frames."""
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        mixed = attend(
            self.q_proj(x).reshape(heads),
            self.k_proj(x).reshape(heads),
            self.v_proj(x).reshape(heads),
            lengths,
            dropout_rate=self.config.attention_dropout,
            randomness=randomness,
        )
        return self.out_proj(mixed.reshape(x.shape))
