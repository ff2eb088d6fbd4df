"""The dynamic loss scale against the rule of torch.amp.GradScaler, written out."""

import jax.numpy as jnp
import numpy as np

from xtremes_jax.training.precision import LossScale, compute_dtype


def test_scale_grows_after_finite_steps_and_halves_after_others(rng):
    scale, expected, streak = LossScale.create(enabled=True), 65536.0, 0
    assert scale.scale == 65536
    for finite in rng.random(60) < 0.8:
        scale = scale.update(jnp.asarray(finite), growth_interval=3)
        if finite:
            streak += 1
            if streak == 3:
                expected, streak = expected * 2, 0
        else:
            expected, streak = max(1.0, expected / 2), 0
        assert (float(scale.scale), int(scale.finite_steps)) == (expected, streak)


def test_disabled_scale_is_one():
    assert LossScale.create(enabled=False).scale == 1


def test_compute_dtype():
    assert compute_dtype(fp16=True, bf16=False) == np.float16
    assert compute_dtype(fp16=False, bf16=True) == jnp.bfloat16
    assert compute_dtype(fp16=False, bf16=False) == np.float32
