"""Parameters that join the training later: against PyTorch, where they have no gradient until then."""

import jax
import numpy as np
import pytest
from steps import Run, make_batch, tiny, torch_run

from xtremes_jax.models import to_huggingface, unflatten_params

PAUSE = 3


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("head", ["ctc", "classification"])
def test_steps_equal_those_of_pytorch_without_gradients_at_first(rng, head, accumulation):
    config = tiny(head)
    batches = [make_batch(rng, config) for _ in range(4)] * 2
    run = Run(config, late_updates=PAUSE, accumulation=accumulation)
    expected, parameters = torch_run(
        config, to_huggingface(unflatten_params(run.start), config), batches, late_updates=PAUSE
    )
    losses = run.losses(batches[:PAUSE])
    for name, value in run.state.trainable.items():
        assert np.array_equal(value, run.start[name]) == name.startswith("encoder."), name
    moments = jax.tree_util.tree_leaves(run.state.optimizer.late)
    assert not any(np.any(leaf) for leaf in moments)
    losses += run.losses(batches[PAUSE:])
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    ours = to_huggingface(unflatten_params(run.state.trainable | run.state.frozen), config)
    start = to_huggingface(unflatten_params(run.start), config)
    for name, theirs in parameters.items():
        if name in ours and not name.endswith("k_proj.bias"):  # whose gradient is 0 but for rounding
            apart, moved = (np.linalg.norm(theirs - other[name]) for other in (ours, start))
            assert apart <= 1e-3 * moved, name


def test_a_step_that_is_skipped_is_no_update(rng):
    config = tiny("classification")
    good = make_batch(rng, config)
    bad = good._replace(audio=good.audio.astype(np.float32))
    bad.audio[1, 5] = np.nan
    run, other = Run(config, late_updates=2), Run(config, late_updates=2)
    run.losses([good, bad, good])
    other.losses([good, good])
    jax.tree.map(np.testing.assert_array_equal, run.state.trainable, other.state.trainable)
    name = "encoder.encoder.layers.attention.q_proj.kernel"
    assert np.array_equal(run.state.trainable[name], run.start[name])
    run.losses([good])
    assert not np.array_equal(run.state.trainable[name], run.start[name])


def test_while_they_wait_nothing_is_differentiated_by_them(rng):
    """The program chooses between two branches, of which one multiplies about a third as much as the other."""
    config = tiny("classification")
    run = Run(config, late_updates=PAUSE)
    text = run.step.lower(run.state, make_batch(rng, config)).as_text()
    branches = text[text.index("stablehlo.case") :].split("}, {")
    counts = [branch.count("stablehlo.dot_general") for branch in branches[:2]]
    assert 0 < counts[0] < counts[1] / 2
