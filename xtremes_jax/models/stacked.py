"""Layers of one kind as one module whose parameters are stacked, to be scanned: drawn, skipped and recomputed alike."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Int

from xtremes_jax.errors import InputError
from xtremes_jax.models.layers import PRODUCT
from xtremes_jax.models.masking import LAYER, LAYER_SKIP, Randomness, fold

Layer = TypeVar("Layer", bound=nnx.Module)

REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}
"""What a layer keeps for its gradient, by name.

`none`: everything but the attention scores and the feed-forward's activation (fastest, most memory). `full`: only its
input; the rest is computed again, which costs one more forward pass. `dots`: the results of its linear maps; only what
is cheap, and the attention scores, is computed again.
"""


def check_remat(remat: str) -> None:
    """Raises `InputError` unless `remat` is one of `REMAT_POLICIES`."""
    if remat not in REMAT_POLICIES:
        raise InputError(f"remat policy {remat!r} is unknown; choose one of {', '.join(REMAT_POLICIES)}.")


def stack(make: Callable[[nnx.Rngs], Layer], count: int, rngs: nnx.Rngs) -> Layer:
    """`count` layers as one whose every parameter has a leading axis: the layer."""

    def draw(key: Array) -> Layer:
        return make(nnx.Rngs(key))

    keys = jax.random.split(rngs.params(), count)
    states = jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(draw(key))))(keys)
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: draw(jax.random.key(0)))), states)


def layer_function(
    layers: nnx.Module,
    apply: Callable[[Any, Array, Randomness | None], Array],
    randomness: Randomness | None,
    *,
    layerdrop: float,
    remat: str,
) -> tuple[Callable[[Any, Array, Int[Array, ""]], Array], Any]:
    """What a scan over stacked layers needs: `run(parameters, x, index)`, and the parameters to scan over.

    Args:
        layers: from `stack`.
        apply: `(layer, x, randomness) -> x`, the keys folded for that layer.
        randomness: keys of this step; None means evaluation.
        layerdrop: probability of skipping a layer (Fan et al. 2019), drawn for all rows together.
        remat: a name of `REMAT_POLICIES`.
    """
    graphdef, stacked = nnx.split(layers)
    randomness = fold(randomness, LAYER)

    def run(params: Any, x: Array, index: Int[Array, ""]) -> Array:
        keys = fold(randomness, index)
        layer = nnx.merge(graphdef, params)
        if keys is None or layerdrop == 0.0:
            return apply(layer, x, keys)
        skip = jax.random.bernoulli(jax.random.fold_in(keys.shared, LAYER_SKIP), layerdrop)
        return jax.lax.cond(skip, lambda x: x, lambda x: apply(layer, x, keys), x)

    if remat != "none":
        # Inside a scan nothing can be merged with the forward pass, so the barrier against that is not needed.
        run = jax.checkpoint(run, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return run, stacked
