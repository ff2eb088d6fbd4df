"""The front end as a program of its own: with it, the training step has none, and trains on the same frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.test_step import Run, make_batch, objective_of, tiny

from xtremes_jax.models.config import steps_after
from xtremes_jax.training.frames import make_frames_step
from xtremes_jax.training.step import join, make_eval_step


def frames_of(run: Run, batch, accumulation: int = 1):
    step = make_frames_step(graphdef=run.graphdef, accumulation=accumulation, mesh=run.mesh)
    return step(run.state.trainable, run.state.frozen, batch)


def test_a_clips_frames_depend_on_nothing_but_the_clip(rng):
    config = tiny("ctc", feat_extract_norm="group")
    run = Run(config)
    lengths = (4000, 9000, 6001, 7777)
    batch = make_batch(rng, config, lengths)
    frames = np.asarray(frames_of(run, batch), np.float32)
    assert frames_of(run, batch).dtype == jnp.bfloat16
    for row, count in enumerate(config.num_frames(np.array(lengths))):
        alone = batch._replace(
            audio=np.pad(batch.audio[row : row + 1, : lengths[row]], [(0, 0), (0, 1234)]),
            audio_lengths=batch.audio_lengths[row : row + 1],
        )
        # A rounding error of float32 may fall on either side of bfloat16's.
        np.testing.assert_allclose(frames[row, :count], frames_of(run, alone)[0, :count], rtol=2**-7, atol=1e-4)


def test_micro_batches_give_the_frames_of_the_batch_in_its_order(rng):
    config = tiny("ctc")
    run = Run(config)
    batch = make_batch(rng, config, (4000, 9000, 6001, 7777, 8200, 5000))
    whole = np.asarray(frames_of(run, batch), np.float32)
    for accumulation in (2, 3):
        parts = np.asarray(frames_of(run, batch, accumulation), np.float32)
        np.testing.assert_allclose(parts, whole, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize(("head", "accumulation"), [("ctc", 1), ("classification", 2)])
def test_a_step_on_frames_is_the_step_on_audio(rng, head, accumulation):
    config = tiny(head, hidden_dropout=0.1, mask_time_prob=0.2, mask_feature_prob=0.1, feat_proj_dropout=0.1)
    batches = [make_batch(rng, config) for _ in range(3)]
    plain, exact, rounded = (Run(config, accumulation=accumulation) for _ in range(3))
    expected = plain.losses(batches)
    model = join(exact.graphdef, exact.state.trainable, exact.state.frozen)
    extract = jax.jit(lambda audio, lengths: model.backbone.extract_frames(audio, lengths))
    in_float32 = [b._replace(audio=None, frames=np.asarray(extract(b.audio, b.audio_lengths))) for b in batches]
    assert in_float32[0].frames.dtype == np.float32
    np.testing.assert_allclose(exact.losses(in_float32), expected, rtol=2e-6)
    with_frames = [b._replace(audio=None, frames=frames_of(rounded, b)) for b in batches]
    assert with_frames[0].frames.shape == (4, config.num_frames(9000), 32)
    np.testing.assert_allclose(rounded.losses(with_frames), expected, rtol=1e-3)
    for name, value in plain.state.trainable.items():
        np.testing.assert_allclose(exact.state.trainable[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_step_on_frames_holds_no_front_end(rng):
    config = tiny("ctc")
    run = Run(config)
    batch = make_batch(rng, config)
    on_frames = batch._replace(audio=None, frames=frames_of(run, batch))

    def look_at(batch):
        lowered = run.step.lower(run.state, batch)
        return lowered.as_text().count("stablehlo.convolution"), lowered.compile().cost_analysis()["flops"]

    (audio_convolutions, audio_flops), (convolutions, flops) = look_at(batch), look_at(on_frames)
    assert audio_convolutions - convolutions == len(config.conv_dim) == 7
    length, front_end, inputs = 9000, 0, 1
    for width, stride, channels in zip(config.conv_kernel, config.conv_stride, config.conv_dim, strict=True):
        length = steps_after(length, width, stride)
        front_end += 2 * 4 * length * width * inputs * channels
        inputs = channels
    assert audio_flops - flops >= front_end


def test_evaluation_takes_frames_too(rng):
    config = tiny("ctc")
    run = Run(config)
    batch = make_batch(rng, config)
    evaluate = make_eval_step(graphdef=run.graphdef, objective=objective_of(config), mesh=run.mesh)
    plain = evaluate(run.state.trainable, run.state.frozen, batch)
    on_frames = batch._replace(audio=None, frames=frames_of(run, batch))
    cached = evaluate(run.state.trainable, run.state.frozen, on_frames)
    np.testing.assert_array_equal(cached.lengths, plain.lengths)
    np.testing.assert_allclose(cached.loss_sum, plain.loss_sum, rtol=1e-3)
