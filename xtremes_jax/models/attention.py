"""Multi-head attention (Vaswani et al. 2017) over frames, with the frames past a clip's length masked, or causal."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from xtremes_jax.models.config import ModelConfig
from xtremes_jax.models.layers import PRODUCT, linear
from xtremes_jax.models.masking import Randomness, dropout, frame_mask
from xtremes_jax.models.partitioning import batch_axes
from xtremes_jax.models.platform import platform

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of a masked key: its weight is exactly 0 beside any score that counts."""

_PIECE_BYTES = {"cpu": 4 << 20, "gpu": 256 << 20, "tpu": 32 << 20}
"""Scores that explicit attention computes at once on a device: about what stays in a CPU's cache or a TPU's vector
memory; on a GPU what keeps it busy without filling its memory."""

_FEW_QUERIES = 16
"""Fewer than this, as in step-by-step decoding, leave the fused kernel nothing to save."""


def attend(
    query: Float[Array, "batch queries heads head_features"],
    key: Float[Array, "batch frames heads head_features"],
    value: Float[Array, "batch frames heads head_features"],
    lengths: Int[Array, " batch"] | None,
    *,
    bias: Float[Array, "batch heads queries frames"] | None = None,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    randomness: Randomness | None = None,
) -> Float[Array, "batch queries heads head_features"]:
    """Scaled dot-product attention, with its softmax in float32.

    Args:
        query, key, value: in the compute dtype.
        lengths: keys (frames) that count in each row; None means all. Rows of length 0 give finite numbers.
        bias: what is added to the scaled scores.
        is_causal: whether a query looks only at the keys up to its own place; there are as many of both, then.
        dropout_rate: of the attention probabilities; where neither it nor a bias applies, cuDNN's fused kernel is used
            on GPUs that have it and for the dtypes and head sizes that it takes (it has no gradient for a bias of
            every row).
        randomness: keys already folded for this purpose; None means no dropout.
    """
    if key.shape[1] == 0:
        return jnp.zeros_like(query)
    # A row without any key looks at its first frame: neither path then has to say what it makes of none.
    lengths = None if lengths is None else jnp.maximum(lengths, 1)
    if bias is None and (randomness is None or dropout_rate == 0.0) and _use_cudnn(query):
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=is_causal, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    # Not `implementation="xla"`, whose float16 gradient does not compile on CPUs.
    # Lengths as something to add: a choice by them inside of the loop over pieces would not be vectorised on CPUs.
    mask = None
    if lengths is not None:
        mask = jnp.where(frame_mask(lengths, key.shape[1]), 0.0, _MASKED)[:, None, :]
        mask = jnp.broadcast_to(mask, (*query.shape[:1], query.shape[2], key.shape[1]))
    draws = None
    if randomness is not None and dropout_rate > 0.0:
        heads = jnp.arange(query.shape[2])
        draws = jax.vmap(lambda key: jax.vmap(lambda head: jax.random.fold_in(key, head))(heads))(randomness.rows)
    return _attend_explicitly(query, key, value, bias, mask, draws, is_causal, dropout_rate)


class _Piece(NamedTuple):
    """What attention of some heads of some rows is made from, one behind the other on the first axis."""

    query: Float[Array, "heads queries head_features"]
    key: Float[Array, "heads frames head_features"]
    value: Float[Array, "heads frames head_features"]
    bias: Float[Array, "heads queries frames"] | None
    mask: Float[Array, "heads frames"] | None
    draws: Key[Array, " heads"] | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend_explicitly(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    draws: Array | None,
    is_causal: bool,
    rate: float,
) -> Array:
    """`attend` by its definition, piece by piece, so that a piece's scores stay in the processor's cache.

    The gradient keeps no probabilities, `[batch, heads, queries, frames]`, but computes them again, as FlashAttention
    does (Dao et al. 2022): writing and reading them costs more than that.
    """
    return _attend_forward(query, key, value, bias, mask, draws, is_causal, rate)[0]


def _attend_forward(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    draws: Array | None,
    is_causal: bool,
    rate: float,
) -> tuple[Array, tuple]:
    split, join = _pieces_of(query, key)
    inputs = (*map(_heads_first, (query, key, value)), bias, mask, draws)
    mixed, level = jax.lax.map(lambda piece: _mix(piece, is_causal, rate), _Piece(*map(split, inputs)))
    mixed, level = checkpoint_name((join(mixed), level), PRODUCT)
    return _heads_first(mixed), (*inputs, mixed, level)


def _attend_backward(is_causal: bool, rate: float, saved: tuple, gradient: Array) -> tuple:
    *inputs, mixed, level = saved
    split, join = _pieces_of(*map(_heads_first, inputs[:2]))

    def pull(inputs: tuple) -> tuple[Array | None, ...]:
        return _pull_piece(*inputs, is_causal, rate)

    pieces = _Piece(*map(split, inputs))
    gradients = jax.lax.map(pull, (pieces, split(mixed), level, split(_heads_first(gradient))))
    *of_inputs, of_bias = (None if gradient is None else join(gradient) for gradient in gradients)
    return *map(_heads_first, of_inputs), of_bias, None, None


_attend_explicitly.defvjp(_attend_forward, _attend_backward)


def _heads_first(x: Float[Array, "batch one other features"]) -> Float[Array, "batch other one features"]:
    """`[batch, places, heads, features]` as `[batch, heads, places, features]`, or the other way round."""
    return jnp.swapaxes(x, 1, 2)


def _pieces_of(query: Array, key: Array) -> tuple[Callable[[Array | None], Array | None], Callable[[Array], Array]]:
    """How arrays are split into pieces, which come first then, and put together again.

    A piece has as many heads, and then as many rows, as `_PIECE_BYTES` of scores hold; on several devices all rows, and
    as many heads as each device then has room for, but one at least.
    """
    batch, queries, heads, _ = query.shape
    devices = math.prod(batch_axes().values())
    budget = _PIECE_BYTES.get(platform(), _PIECE_BYTES["gpu"])
    matrices = max(1, budget // (4 * max(1, queries * key.shape[1])))
    if devices > 1:  # rows that are spread over devices stay together
        rows, some = batch, _largest_divisor(heads, matrices * devices // max(1, batch))
    else:
        some = _largest_divisor(heads, matrices)
        rows = _largest_divisor(batch, matrices // some)
    grid = (batch // rows, rows, heads // some, some)

    def split(x: Array | None) -> Array | None:
        """`[batch, heads, ...]` to `[pieces, heads of a piece, ...]`."""
        if x is None:
            return None
        x = jnp.swapaxes(x.reshape(*grid, *x.shape[2:]), 1, 2)
        return x.reshape(grid[0] * grid[2], rows * some, *x.shape[4:])

    def join(x: Array) -> Array:
        """`[pieces, heads of a piece, ...]` back to `[batch, heads, ...]`."""
        x = jnp.swapaxes(x.reshape(grid[0], grid[2], rows, some, *x.shape[2:]), 1, 2)
        return x.reshape(batch, heads, *x.shape[4:])

    return split, join


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`, and 1 at least."""
    return next((divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0), 1)


def _scores(piece: _Piece, is_causal: bool) -> Array:
    """Scores `[heads, queries, frames]` in float32, `_MASKED` where they do not count."""
    scaled = piece.query * jnp.asarray(piece.query.shape[-1] ** -0.5, piece.query.dtype)
    scores = jnp.einsum("hqd,hkd->hqk", scaled, piece.key, preferred_element_type=jnp.float32)
    if piece.bias is not None:
        scores = scores + piece.bias.astype(jnp.float32)
    if piece.mask is not None:
        scores = scores + piece.mask[:, None, :]
    return jnp.where(jnp.tri(*scores.shape[1:], dtype=bool), scores, _MASKED) if is_causal else scores


def _drop(weights: Array, rate: float, draws: Array | None) -> Array:
    """Dropout of `[heads, queries, frames]` with a key for each head of each row."""
    return dropout(weights, rate, None if draws is None else Randomness(rows=draws, shared=draws[0]))


def _mix(piece: _Piece, is_causal: bool, rate: float) -> tuple[Array, Array]:
    """The result `[heads, queries, head_features]`, and the logarithm of each query's sum of exponentiated scores."""
    scores = _scores(piece, is_causal)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = _drop(weights, rate, piece.draws).astype(piece.value.dtype)
    # Divided by their sum afterwards: the result has fewer elements than the weights.
    mixed = jnp.einsum("hqk,hkd->hqd", weights, piece.value, preferred_element_type=jnp.float32)
    return (mixed / total).astype(piece.value.dtype), top + jnp.log(total)


def _pull_piece(
    piece: _Piece, mixed: Array, level: Array, gradient: Array, is_causal: bool, rate: float
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of a piece's queries, keys, values and bias. Masked scores have none: their probability is 0."""
    query, key, value, bias, _, draws = piece
    probabilities = jnp.exp(_scores(piece, is_causal) - level)
    dropped = _drop(probabilities, rate, draws).astype(value.dtype)
    of_value = jnp.einsum("hqk,hqd->hkd", dropped, gradient)
    of_probabilities = jnp.einsum("hqd,hkd->hqk", gradient, value, preferred_element_type=jnp.float32)
    of_probabilities = _drop(of_probabilities, rate, draws)
    # The mean of the probabilities' gradients, which the softmax takes off, is that of the result along itself.
    along = jnp.einsum("hqd,hqd->hq", gradient, mixed, preferred_element_type=jnp.float32)[..., None]
    of_scores = probabilities * (of_probabilities - along)
    of_bias = None if bias is None else of_scores.astype(bias.dtype)
    of_scores = of_scores.astype(query.dtype)
    scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    of_query = jnp.einsum("hqk,hkd->hqd", of_scores, key) * scale
    of_key = jnp.einsum("hqk,hqd->hkd", of_scores, query * scale)
    return of_query, of_key, of_value, of_bias


def _use_cudnn(query: Float[Array, "batch queries heads head_features"]) -> bool:
    """Whether cuDNN's fused attention takes these arrays on this process's devices (NVIDIA, Ampere or newer)."""
    halves = query.dtype in (jnp.bfloat16, jnp.float16)
    if query.shape[1] < _FEW_QUERIES:
        return False
    if not halves or query.shape[-1] % 8 or query.shape[-1] > 128 or platform() != "gpu":
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
        places: Any = None,
    ) -> Float[Array, "batch frames features"]:
        """Every frame looks at the valid frames of its row.

        Args:
            x: the frames.
            lengths: in frames.
            randomness: keys folded for the attention of this layer.
            places: of the encoder's `places`, for families whose attention has a bias by them.
        """
        heads = (*x.shape[:2], self.config.num_attention_heads, -1)
        mixed = attend(
            self.q_proj(x).reshape(heads),
            self.k_proj(x).reshape(heads),
            self.v_proj(x).reshape(heads),
            lengths,
            bias=self.bias(x, places),
            dropout_rate=self.config.attention_dropout,
            randomness=randomness,
        )
        return self.out_proj(mixed.reshape(x.shape))

    def bias(
        self, x: Float[Array, "batch frames features"], places: Any
    ) -> Float[Array, "batch heads frames frames"] | None:
        """What the scores of the frames' looks at each other begin with; None here."""
        return None
