"""Schedules, AdamW and clipping against closed forms and (where installed) PyTorch and Transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtremes_jax.errors import InputError
from xtremes_jax.training import optimizer


def test_linear_schedule_closed_form():
    schedule = optimizer.make_schedule("linear", 0.5, warmup=4, total_steps=12)
    expected = [0, 0.125, 0.25, 0.375, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625, 0]
    np.testing.assert_allclose([schedule(i) for i in range(13)], expected, atol=1e-7)


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", optimizer.SCHEDULES)
def test_schedules_equal_transformers(name, warmup):
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(name, theirs, num_warmup_steps=warmup, num_training_steps=30)
    expected = []
    for _ in range(30):
        expected.append(scheduler.get_last_lr()[0])
        theirs.step()
        scheduler.step()
    schedule = optimizer.make_schedule(name, 3e-4, warmup, 30)
    np.testing.assert_allclose([float(schedule(i)) for i in range(30)], expected, rtol=1e-5, atol=1e-12)


def test_unknown_schedule():
    with pytest.raises(InputError, match="lr_scheduler_type.*linear"):
        optimizer.make_schedule("triangle", 1.0, 0, 10)


@pytest.mark.parametrize(
    "steps, ratio, expected", [(500, 0.0, 500), (0.1, 0.0, 100), (0, 0.25, 250), (0, 0, 0), (1, 0, 1)]
)
def test_warmup_is_a_count_or_a_fraction(steps, ratio, expected):
    assert optimizer.warmup_step_count(steps, ratio, 1000) == expected


def test_adamw_equals_torch(rng):
    torch = pytest.importorskip("torch")
    start = {"kernel": rng.normal(size=(5, 3)).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)}
    gradients = [{name: rng.normal(size=v.shape).astype(np.float32) for name, v in start.items()} for _ in range(20)]
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.1},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.95), eps=1e-6)
    schedule = optimizer.make_schedule("cosine", 0.05, 5, 20)
    ours = optimizer.make_optimizer(
        schedule, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1, decay_mask={"kernel": True, "bias": False}
    )
    params = jax.tree.map(jnp.asarray, start)
    state = ours.init(params)
    for count, gradient in enumerate(gradients):
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
        for group in reference.param_groups:
            group["lr"] = float(schedule(count))
        reference.step()
        our_gradient = jax.tree.map(jnp.asarray, gradient)
        our_norm = optimizer.global_norm(our_gradient)
        np.testing.assert_allclose(our_norm, norm.item(), rtol=1e-6)
        updates, state = ours.update(optimizer.clip_by_norm(our_gradient, our_norm, 2.0), state, params)
        params = optax.apply_updates(params, updates)
    for name in start:
        np.testing.assert_allclose(params[name], theirs[name].detach().numpy(), atol=2e-6)


def test_clipping_scales_down_and_never_up(rng):
    gradient = {"a": jnp.asarray(rng.normal(size=7).astype(np.float32))}
    norm = optimizer.global_norm(gradient)
    clipped = optimizer.clip_by_norm(gradient, norm, float(norm) / 3)
    np.testing.assert_allclose(optimizer.global_norm(clipped), norm / 3, rtol=1e-5)
    np.testing.assert_array_equal(optimizer.clip_by_norm(gradient, norm, float(norm) * 3)["a"], gradient["a"])
    np.testing.assert_array_equal(optimizer.clip_by_norm(gradient, norm, 0.0)["a"], gradient["a"])
