"""What attention's scores get from how far two frames lie apart: distances laid out as a bias `[queries, frames]`."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def by_distance(
    x: Float[Array, "*heads frames distances"],
) -> Float[Array, "*heads frames frames"]:
    """What every query has for each distance, as what it has for each frame.

    The distances are those of frames after the query less it, from `1 - frames` to `frames - 1`: entry `[i, j]` of the
    result is entry `[i, j - i + frames - 1]` of `x`. Every row is one step further to the right than the row before:
    with one column more, whole rows that are read one element late shift by themselves (Dai et al. 2019,
    Transformer-XL, appendix B), so neither this nor its gradient looks anything up.
    """
    frames = x.shape[-2]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)])
    x = x.reshape(*x.shape[:-2], 2 * frames, frames)[..., 1:, :]
    return x.reshape(*x.shape[:-2], frames, 2 * frames - 1)[..., :frames]
