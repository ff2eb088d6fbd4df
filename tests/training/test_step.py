"""The training step: against a plain PyTorch loop, and its invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import Run, make_batch, objective_of, tiny, torch_losses

from xtremes_jax.batch import Batch
from xtremes_jax.models import decode_ctc, is_feature_encoder, to_huggingface, unflatten_params
from xtremes_jax.training.sharding import batch_sharding
from xtremes_jax.training.step import join, make_eval_step, step_randomness


@pytest.mark.parametrize("head", ["ctc", "classification"])
def test_twenty_steps_equal_a_plain_pytorch_loop(rng, head):
    config = tiny(head)
    batches = [make_batch(rng, config) for _ in range(4)] * 5
    run = Run(config)
    expected = torch_losses(config, to_huggingface(unflatten_params(run.start), config), batches)
    ours = run.losses(batches)
    assert ours[16] < ours[0]  # the same batch, four epochs later
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_accumulation_changes_nothing_with_dropout_and_masks_on(rng):
    config = tiny(
        "ctc", hidden_dropout=0.2, attention_dropout=0.2, final_dropout=0.1, layerdrop=0.2, mask_time_prob=0.4
    )
    batches = [make_batch(rng, config) for _ in range(3)]
    whole, parts = Run(config), Run(config, accumulation=2)
    np.testing.assert_allclose(whole.losses(batches), parts.losses(batches), rtol=2e-5)


def test_filler_rows_change_nothing(rng):
    config = tiny("ctc", hidden_dropout=0.2, mask_time_prob=0.4)
    batch = make_batch(rng, config)
    filler = [(0, 3)]
    padded = Batch(
        np.pad(batch.audio, filler + [(0, 0)]), np.pad(batch.audio_lengths, filler),
        np.pad(batch.labels, filler + [(0, 0)]), np.pad(batch.label_lengths, filler), np.pad(batch.weight, filler),
        np.pad(batch.sample_ids, filler, constant_values=-1),
    )  # fmt: skip
    np.testing.assert_allclose(Run(config).losses([batch] * 3), Run(config).losses([padded] * 3), rtol=2e-5)


@pytest.mark.parametrize("change", [{"hidden_dropout": 0.3}, {"mask_time_prob": 0.5}, {"mask_feature_prob": 0.5}])
def test_regularisation_changes_the_loss_and_follows_the_step(rng, change):
    batch = make_batch(rng, tiny("ctc"))
    quiet = Run(tiny("ctc"), learning_rate=0.0).losses([batch, batch])
    noisy = Run(tiny("ctc", **change), learning_rate=0.0).losses([batch, batch])
    assert quiet[0] == quiet[1]
    assert abs(noisy[0] - quiet[0]) > 1e-4 and abs(noisy[0] - noisy[1]) > 1e-4
    assert Run(tiny("ctc", **change), learning_rate=0.0).losses([batch]) == noisy[:1]


def test_frozen_front_end_does_not_move_and_the_rest_does(rng):
    config = tiny("ctc")
    run = Run(config)
    run.losses([make_batch(rng, config)] * 3)
    assert run.state.frozen and all(is_feature_encoder(name) for name in run.state.frozen)
    for name, value in run.state.frozen.items():
        np.testing.assert_array_equal(value, run.start[name])
    still = {name for name, value in run.state.trainable.items() if np.array_equal(value, run.start[name])}
    assert not still  # decay alone moves the mask vector, which has no gradient while masks are off


def test_gradients_that_are_not_finite_leave_the_state_alone(rng):
    config = tiny("ctc")
    run = Run(config)
    good = make_batch(rng, config)
    bad = good._replace(audio=good.audio.astype(np.float32))
    bad.audio[1, 5] = np.nan
    run.losses([good])
    before = jax.tree.map(np.asarray, (run.state.trainable, run.state.optimizer))
    run.losses([bad, bad])
    jax.tree.map(np.testing.assert_array_equal, before, (run.state.trainable, run.state.optimizer))
    assert (int(run.state.step), int(run.state.skipped_updates), int(run.state.nonfinite_streak)) == (3, 2, 2)
    run.losses([good])
    assert (int(run.state.skipped_updates), int(run.state.nonfinite_streak)) == (2, 0)
    assert not np.array_equal(before[0]["lm_head.kernel"], run.state.trainable["lm_head.kernel"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_follows_float32(rng, dtype):
    config = tiny("classification")
    batches = [make_batch(rng, config) for _ in range(2)] * 4
    exact = Run(config).losses(batches)
    half = Run(config, dtype=dtype, scale_loss=dtype == jnp.float16)
    values = half.losses(batches)
    np.testing.assert_allclose(values, exact, rtol=0.03)
    assert values != exact
    assert all(value.dtype == np.float32 for value in half.state.trainable.values())
    assert int(half.state.skipped_updates) == 0


def test_one_compilation_per_shape(rng):
    config = tiny("ctc")
    run = Run(config)
    short, long = make_batch(rng, config), make_batch(rng, config, lengths=(5000, 12000, 800, 401))
    run.losses([short, long, short, long, short])
    assert run.step._cache_size() == 2


def test_evaluation_equals_the_model_and_ignores_fillers(rng):
    config = tiny("ctc", hidden_dropout=0.5)
    run = Run(config)
    batch = make_batch(rng, config)
    evaluate = make_eval_step(graphdef=run.graphdef, objective=objective_of(config), mesh=run.mesh)
    full = evaluate(run.state.trainable, run.state.frozen, batch)
    half = evaluate(run.state.trainable, run.state.frozen, batch._replace(weight=np.array([1, 0, 1, 0], np.float32)))
    assert float(full.weight) == 4 and float(half.weight) == 2 and 0 < float(half.loss_sum) < float(full.loss_sum)


@pytest.mark.parametrize("beams", [1, 4])
def test_evaluation_writes_the_transcripts_of_the_search_that_is_asked_for(rng, beams):
    config = tiny("ctc")
    run = Run(config)
    run.state.trainable["lm_head.kernel"] *= 20  # so that not all is blank
    batch = make_batch(rng, config)
    options = dict(graphdef=run.graphdef, objective=objective_of(config), mesh=run.mesh)
    evaluate = make_eval_step(**options, **({} if beams == 1 else {"ctc_beams": beams}))
    got = evaluate(run.state.trainable, run.state.frozen, batch)
    output = join(run.graphdef, run.state.trainable, run.state.frozen)(batch.audio, batch.audio_lengths)
    wanted = decode_ctc(output.logits, output.logit_lengths, blank=10, beams=beams)
    np.testing.assert_array_equal(got.ids, wanted.tokens)
    np.testing.assert_array_equal(got.lengths, wanted.lengths)
    assert got.ids.shape == (4, config.num_frames(9000)) and got.lengths.max() > 1


def test_draws_depend_on_the_clip_and_not_on_its_place():
    key = jax.random.key(0)
    one = step_randomness(key, jnp.array([5, -1, 9]))
    other = step_randomness(key, jnp.array([9, 5]))
    data = jax.random.key_data
    np.testing.assert_array_equal(data(one.rows[0]), data(other.rows[1]))
    np.testing.assert_array_equal(data(one.rows[2]), data(other.rows[0]))
    np.testing.assert_array_equal(data(one.shared), data(other.shared))


def test_between_steps_nothing_travels_and_the_old_state_is_gone(rng):
    config = tiny("ctc", mask_time_prob=0.2)
    run = Run(config)
    rows = batch_sharding(run.mesh)
    batches = [Batch(*(jax.device_put(a, rows) for a in make_batch(rng, config))) for _ in range(2)]
    run.state, _ = run.step(run.state, batches[0])  # compiled outside: constants go to the device once
    before = run.state
    with jax.transfer_guard("disallow"):
        run.state, metrics = run.step(run.state, batches[1])
    assert all(array.is_deleted() for array in before.trainable.values())
    assert np.isfinite(float(metrics.loss))
