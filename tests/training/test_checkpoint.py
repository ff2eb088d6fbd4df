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
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    checkpoints.save(7, state, {"best_score": 0.5, "note": "é"})
    checkpoints.close()

    again = Checkpoints(tmp_path / "checkpoints")
    restored, progress = again.restore(again.latest(), abstract(state))
    assert progress == {"best_score": 0.5, "note": "é"}
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    again.close()


@pytest.mark.parametrize(
    "limit, best, kept", [(1, None, [50]), (1, 20, [20, 50]), (2, 50, [40, 50]), (3, 10, [10, 40, 50])]
)
def test_limit_keeps_the_best_the_newest_and_as_many_as_it_says(tmp_path, rng, limit, best, kept):
    state = make_state(rng)
    checkpoints = Checkpoints(tmp_path, keep=limit, best=lambda: best)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(step, state, {})
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.steps() == kept
    again.close()


def test_going_back_removes_what_came_after(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(rng), {})
    checkpoints.wait()
    checkpoints.delete_after(1)
    assert checkpoints.steps() == [1]
    checkpoints.close()


def test_a_checkpoint_is_found_by_its_run_or_by_its_own_path(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, make_state(rng), {})
    checkpoints.close()
    for path, expected in (("run", 2), ("run/checkpoints", 2), ("run/checkpoints/1", 1)):
        found, step = Checkpoints.at(tmp_path / path)
        assert step == expected and found.steps() == [1, 2]
        found.close()
    for path in ("nowhere", "run/checkpoints/7"):
        with pytest.raises(InputError, match="resume_from_checkpoint"):
            Checkpoints.at(tmp_path / path)


def test_other_shapes_and_missing_steps_are_named(tmp_path, rng):
    state = make_state(rng)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    with pytest.raises(InputError, match=r"no checkpoint of step 2.*\[1\]"):
        checkpoints.restore(2, abstract(state))
    with pytest.raises(
        InputError, match=r"does not fit.*encoder.layers.kernel has shape \(4, 3\) there and \(4, 6\) here"
    ):
        checkpoints.restore(1, abstract(make_state(rng, width=6)))
    checkpoints.close()
