"""The training step with low-rank factors: what it computes and holds."""

import re
from pathlib import Path

import jax
import numpy as np
from runs import run_on_eight_devices
from steps import Run, make_batch, tiny

from xtremes_jax.models import Lora, is_factor

LORA = Lora(rank=3, alpha=6.0)


def products(run, batch):
    """Shapes of the results of the matrix products in the compiled step."""
    text = run.step.lower(run.state, batch).compile().as_text()
    return set(re.findall(r"= f32\[([\d,]*)\]\S* dot\(", text))


def test_no_gradient_of_a_frozen_matrix_is_computed(rng):
    config = tiny("classification")
    batch = make_batch(rng, config)
    width, wide = config.hidden_size, config.intermediate_size
    matrices = {f"{width},{wide}", f"{wide},{width}"}
    assert matrices <= products(Run(config), batch)
    adapted = products(Run(config, lora=LORA), batch)
    assert not matrices & adapted and {f"{width},3", f"3,{wide}"} <= adapted


def test_factors_learn_and_nothing_else_of_the_encoder(rng):
    config = tiny("ctc", hidden_dropout=0.1, mask_time_prob=0.2, layerdrop=0.1)
    batches = [make_batch(rng, config) for _ in range(2)] * 6
    run = Run(config, lora=LORA, learning_rate=1e-2)
    losses = run.losses(batches)
    assert losses[-2] < losses[0]
    assert all(is_factor(name) or name.startswith("lm_head") for name in run.state.trainable)
    assert not any(np.array_equal(value, run.start[name]) for name, value in run.state.trainable.items())
    jax.tree.map(np.testing.assert_array_equal, run.state.frozen, {name: run.start[name] for name in run.state.frozen})
    parts = Run(config, lora=LORA, learning_rate=1e-2, accumulation=2)
    np.testing.assert_allclose(parts.losses(batches), losses, rtol=1e-4)


def test_factors_may_join_later_too(rng):
    config = tiny("classification")
    run = Run(config, lora=LORA, late_updates=2)
    batch = make_batch(rng, config)
    run.losses([batch] * 2)
    still = [np.array_equal(value, run.start[name]) for name, value in run.state.trainable.items() if is_factor(name)]
    assert all(still)
    run.losses([batch] * 2)
    moved = [name for name in run.state.trainable if not np.array_equal(run.state.trainable[name], run.start[name])]
    assert sorted(moved) == sorted(run.state.trainable)


EIGHT = """
    import sys
    sys.path.insert(0, TESTS)
    import jax, numpy as np
    from jax.sharding import PartitionSpec
    from steps import Run, make_batch, tiny
    from xtremes_jax.models import Lora
    from xtremes_jax.training import sharding

    sharding.SMALLEST_SHARDED = 128  # so that FSDP splits the factors of a tiny model
    config = tiny("ctc", hidden_dropout=0.1, mask_time_prob=0.2)
    batches = [make_batch(np.random.default_rng(seed), config, LENGTHS) for seed in range(3)]
    one = SINGLE
    for fsdp, accumulation in ((1, 2), (4, 1)):
        run = Run(config, lora=Lora(4, 8.0), late_updates=1, fsdp=fsdp, accumulation=accumulation)
        factor = run.state.trainable["encoder.encoder.layers.feed_forward.output_dense.lora_A"]
        assert (factor.sharding.spec == PartitionSpec()) == (fsdp == 1), factor.sharding
        rows = sharding.batch_sharding(run.mesh)
        with jax.set_mesh(run.mesh):
            losses = run.losses([jax.device_put(batch, rows) for batch in batches])
        np.testing.assert_allclose(losses, one, rtol=1e-4)
        print(fsdp, "agrees")
"""


def test_eight_devices_do_what_one_does():
    lengths = (4000, 9000, 6001, 7777) * 4
    config = tiny("ctc", hidden_dropout=0.1, mask_time_prob=0.2)
    batches = [make_batch(np.random.default_rng(seed), config, lengths) for seed in range(3)]
    expected = Run(config, lora=Lora(4, 8.0), late_updates=1).losses(batches)
    script = EIGHT.replace("SINGLE", repr(expected)).replace("LENGTHS", repr(lengths))
    printed = run_on_eight_devices(script.replace("TESTS", repr(str(Path(__file__).resolve().parents[1]))))
    assert printed.splitlines()[-1] == "4 agrees"
