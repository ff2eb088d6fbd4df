"""CTC and cross entropy against brute force, closed forms, optax and (where installed) PyTorch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtremes_jax.training import losses


def ragged_batch(rng, batch=5, frames=23, labels=6, vocabulary=7, blank=0):
    """Random logits and labels whose rows differ in length, repeats among the labels included."""
    logits = rng.normal(size=(batch, frames, vocabulary)).astype(np.float32) * 2
    label_lengths = rng.integers(0, labels + 1, batch).astype(np.int32)
    label_lengths[0] = labels
    symbols = [s for s in range(vocabulary) if s != blank]
    targets = rng.choice(symbols, (batch, labels)).astype(np.int32)
    targets[0, :3] = targets[0, 0]
    logit_lengths = rng.integers(2 * labels + 1, frames + 1, batch).astype(np.int32)
    return logits, logit_lengths, targets, label_lengths


def ctc(*arrays, **options):
    """`ctc_loss` (one value a row) or, given a reduction, `ctc_loss_sum`, of NumPy arrays."""
    function = losses.ctc_loss_sum if "reduction" in options else losses.ctc_loss
    return function(*[jnp.asarray(array) for array in arrays], **options)


def collapse(path, blank):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


def test_ctc_equals_sum_over_all_alignments(rng):
    frames, vocabulary, blank = 5, 3, 2
    logits = rng.normal(size=(1, frames, vocabulary)).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(logits[0], axis=-1), np.float64)
    for target in [(), (0,), (0, 1), (1, 1), (0, 1, 0), (1, 1, 1)]:
        paths = itertools.product(range(vocabulary), repeat=frames)
        total = sum(
            np.prod([probabilities[t, s] for t, s in enumerate(path)])
            for path in paths
            if collapse(path, blank) == target
        )
        padded = np.array([[*target, *[0] * (4 - len(target))]], np.int32)
        loss = ctc(logits, np.array([frames]), padded, np.array([len(target)]), blank=blank)
        np.testing.assert_allclose(loss[0], -np.log(total), rtol=1e-5)


@pytest.mark.parametrize("blank", [0, 6])
def test_ctc_and_gradient_equal_optax(rng, blank):
    logits, logit_lengths, labels, label_lengths = ragged_batch(rng, blank=blank)
    row_weights = jnp.asarray(rng.normal(size=len(logits)).astype(np.float32))

    def ours(x):
        return jnp.sum(row_weights * ctc(x, logit_lengths, labels, label_lengths, blank=blank))

    def theirs(x):
        frame_padding = (np.arange(x.shape[1])[None] >= logit_lengths[:, None]).astype(np.float32)
        label_padding = (np.arange(labels.shape[1])[None] >= label_lengths[:, None]).astype(np.float32)
        return jnp.sum(row_weights * optax.ctc_loss(x, frame_padding, labels, label_padding, blank_id=blank))

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    expected, expected_gradient = jax.value_and_grad(theirs)(jnp.asarray(logits))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)


def test_ctc_and_gradient_equal_torch(rng):
    torch = pytest.importorskip("torch")
    logits, logit_lengths, labels, label_lengths = ragged_batch(rng, batch=8, frames=70, labels=20, vocabulary=33)
    # In float64, so that what the gradient is compared with has no rounding of its own to speak of.
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    log_probs = torch.log_softmax(theirs, dim=-1).transpose(0, 1)
    loss = torch.nn.functional.ctc_loss(
        log_probs, torch.tensor(labels), torch.tensor(logit_lengths), torch.tensor(label_lengths), reduction="none"
    )
    mean = torch.nn.functional.ctc_loss(
        log_probs, torch.tensor(labels), torch.tensor(logit_lengths), torch.tensor(label_lengths), reduction="mean"
    )
    mean.backward()

    def ours(x):
        weight = jnp.ones(len(logits))
        total = ctc(x, logit_lengths, labels, label_lengths, weight, blank=0, reduction="mean", zero_infinity=False)
        return total / losses.loss_weight(weight, reduction="mean")

    rows = ctc(logits, logit_lengths, labels, label_lengths, blank=0)
    np.testing.assert_allclose(rows, loss.detach().numpy(), rtol=2e-5)
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    np.testing.assert_allclose(value, mean.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


def test_row_that_cannot_be_aligned(rng):
    logits, logit_lengths, labels, label_lengths = ragged_batch(rng)
    label_lengths[1:] = 2
    labels[0, :3] = 4
    label_lengths[0], logit_lengths[0] = 3, 4  # three equal labels need five frames

    def total(x, zero_infinity):
        return ctc(
            x, logit_lengths, labels, label_lengths, np.ones(len(logits), np.float32), blank=0, reduction="mean",
            zero_infinity=zero_infinity,
        )  # fmt: skip

    assert np.isinf(total(jnp.asarray(logits), False))
    value, gradient = jax.value_and_grad(total)(jnp.asarray(logits), True)
    assert np.isfinite(value) and value > 0
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[0]) and np.any(gradient[1])
    label_lengths[0], logit_lengths[0] = 3, 5
    assert np.isfinite(total(jnp.asarray(logits), False))


def test_filler_rows_and_padding_change_nothing(rng):
    logits, logit_lengths, labels, label_lengths = ragged_batch(rng)
    weight = np.ones(len(logits), np.float32)

    def total(x, frames, targets, counts, row_weight):
        return ctc(x, frames, targets, counts, row_weight, blank=0, reduction="mean", zero_infinity=False)

    value, gradient = jax.value_and_grad(total)(jnp.asarray(logits), logit_lengths, labels, label_lengths, weight)
    wide = np.pad(logits, ((0, 2), (0, 9), (0, 0)), constant_values=3.0)
    padded_value, padded_gradient = jax.value_and_grad(total)(
        jnp.asarray(wide), np.pad(logit_lengths, (0, 2)), np.pad(labels, ((0, 2), (0, 5))),
        np.pad(label_lengths, (0, 2)), np.pad(weight, (0, 2)),
    )  # fmt: skip
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    np.testing.assert_allclose(padded_gradient[: len(logits), : logits.shape[1]], gradient, atol=1e-6)
    assert not np.any(padded_gradient[len(logits) :]) and not np.any(padded_gradient[:, logits.shape[1] :])


def test_reductions(rng):
    logits, logit_lengths, labels, label_lengths = ragged_batch(rng)
    weight = jnp.ones(len(logits))
    rows = ctc(logits, logit_lengths, labels, label_lengths, blank=0)
    options = dict(blank=0, zero_infinity=False)
    arguments = (jnp.asarray(logits), logit_lengths, labels, label_lengths, weight)
    np.testing.assert_allclose(ctc(*arguments, reduction="sum", **options), rows.sum(), rtol=1e-6)
    expected = (rows / np.maximum(label_lengths, 1)).sum()
    np.testing.assert_allclose(ctc(*arguments, reduction="mean", **options), expected, rtol=1e-6)
    assert losses.loss_weight(weight, reduction="mean") == len(logits)
    assert losses.loss_weight(weight, reduction="sum") == 1


def test_cross_entropy_closed_form(rng):
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    labels = np.array([[0], [2], [1], [1]], np.int32)
    weight = np.array([1, 1, 1, 0], np.float32)
    shifted = np.exp(logits.astype(np.float64))
    expected = -sum(np.log(shifted[i, labels[i, 0]] / shifted[i].sum()) for i in range(3))
    value = losses.classification_loss_sum(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weight))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def translation(*arrays, smoothing):
    """`translation_loss_sum` of NumPy arrays."""
    return losses.translation_loss_sum(*[jnp.asarray(array) for array in arrays], smoothing=smoothing)


def count(*arrays):
    """`translation_loss_weight` of NumPy arrays."""
    return losses.translation_loss_weight(*[jnp.asarray(array) for array in arrays])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_translation_loss_is_the_trainers(smoothing, rng):
    torch = pytest.importorskip("torch")
    from transformers.trainer_pt_utils import LabelSmoother

    logits = (3 * rng.standard_normal((4, 6, 11))).astype(np.float32)
    lengths, weight = np.array([6, 2, 4, 0], np.int32), np.array([1, 1, 0, 0], np.float32)
    labels = rng.integers(0, 11, (4, 6)).astype(np.int32)

    def loss(logits):
        total = translation(logits, labels, lengths, weight, smoothing=smoothing)
        return total / count(lengths, weight)

    ours, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    counts = (np.arange(6) < lengths[:, None]) & (weight > 0)[:, None]
    theirs = torch.from_numpy(logits).requires_grad_()
    targets = torch.from_numpy(np.where(counts, labels, -100)).long()
    expected = LabelSmoother(epsilon=smoothing)({"logits": theirs}, targets)
    expected.backward()
    np.testing.assert_allclose(ours, expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)


def test_translation_loss_by_hand():
    logits = np.log(np.array([[[1, 2, 1], [3, 1, 4], [1e30, 1, 1]]], np.float32))
    labels, lengths, weight = np.array([[1, 2, 0]], np.int32), np.array([2], np.int32), np.array([0.5], np.float32)
    total = translation(logits, labels, lengths, weight, smoothing=0.0)
    np.testing.assert_allclose(total, 0.5 * (np.log(4 / 2) + np.log(8 / 4)), rtol=1e-6)
    assert count(lengths, weight) == 1
    smoothed = translation(logits, labels, lengths, weight, smoothing=0.3)
    spread = np.mean(np.log([4, 2, 4])) + np.mean(np.log([8 / 3, 8, 2]))
    np.testing.assert_allclose(smoothed, 0.7 * total + 0.3 * 0.5 * spread, rtol=1e-6)


def test_translation_losses_of_micro_batches_add_up(rng):
    logits = rng.standard_normal((4, 3, 7)).astype(np.float32)
    labels = rng.integers(0, 7, (4, 3)).astype(np.int32)
    lengths, weight = np.array([3, 1, 2, 3], np.int32), np.ones(4, np.float32)
    parts = [slice(0, 1), slice(1, 4)]
    sums = [translation(logits[p], labels[p], lengths[p], weight[p], smoothing=0.1) for p in parts]
    np.testing.assert_allclose(sum(sums), translation(logits, labels, lengths, weight, smoothing=0.1), rtol=1e-6)
    assert sum(float(count(lengths[p], weight[p])) for p in parts) == 9


def test_zero_infinity_hides_no_broken_logits(rng):
    logits, logit_lengths, labels, label_lengths = ragged_batch(rng)
    logits[1, 2, 3] = np.nan
    weight = np.ones(len(logits), np.float32)
    total = ctc(logits, logit_lengths, labels, label_lengths, weight, blank=0, reduction="mean", zero_infinity=True)
    assert np.isnan(total)
