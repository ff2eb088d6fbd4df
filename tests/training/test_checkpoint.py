"""Checkpoints through real Orbax directories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.training.checkpoint import Checkpoints
from xtremes_jax.training.state import create_state


def make_state(rng, width=3):
    trainable = {"encoder.layers.kernel": jnp.asarray(rng.normal(size=(4, width)).astype(np.float32))}
    frozen = {"front": jnp.asarray(rng.normal(size=5).astype(np.float32))}
    return create_state(trainable, frozen, optax.adamw(1e-3), scale_loss=True)


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, rng):
    state = make_state(rng)._replace(step=jnp.asarray(7, jnp.int32))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=None, greater_is_better=False)
    assert checkpoints.latest() is None
    checkpoints.save(7, state, {"best_score": 0.5, "note": "é"})
    checkpoints.close()

    again = Checkpoints(tmp_path / "checkpoints", keep=None, greater_is_better=False)
    restored, progress = again.restore(again.latest(), abstract(state))
    assert progress == {"best_score": 0.5, "note": "é"}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    again.close()


@pytest.mark.parametrize("greater_is_better, best", [(True, 20), (False, 30)])
def test_limit_keeps_the_best_and_the_newest(tmp_path, rng, greater_is_better, best):
    state = make_state(rng)
    checkpoints = Checkpoints(tmp_path, keep=2, greater_is_better=greater_is_better)
    for step, score in [(10, 0.5), (20, 0.9), (30, 0.1), (40, 0.4), (50, None)]:
        checkpoints.save(step, state, {}, score)
    checkpoints.close()
    kept = Checkpoints(tmp_path, keep=2, greater_is_better=greater_is_better)
    assert kept.steps() == [best, 50]
    kept.close()


def test_other_shapes_and_missing_steps_are_named(tmp_path, rng):
    state = make_state(rng)
    checkpoints = Checkpoints(tmp_path, keep=None, greater_is_better=False)
    checkpoints.save(1, state, {})
    with pytest.raises(InputError, match=r"no checkpoint of step 2.*\[1\]"):
        checkpoints.restore(2, abstract(state))
    with pytest.raises(
        InputError, match=r"does not fit.*encoder.layers.kernel has shape \(4, 3\) there and \(4, 6\) here"
    ):
        checkpoints.restore(1, abstract(make_state(rng, width=6)))
    checkpoints.close()
