"""The CTC loss where it is hard: scores far below float32's range, large vocabularies, all lengths, infinities.

Its ordinary cases are in test_losses.py, beside the other losses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from xtremes_jax.training.ctc import ctc_loss


def by_hand(logits, frames, labels, blank):
    """One row's loss and gradient in float64, by the recursions as Graves et al. write them."""
    log_probs = logits.astype(np.float64) - logsumexp(logits.astype(np.float64), axis=-1, keepdims=True)
    states = [blank]
    for label in labels:
        states += [label, blank]
    count = len(states)
    emitted = log_probs[:frames, states]
    alpha, beta = np.full((frames, count), -np.inf), np.full((frames, count), -np.inf)
    alpha[0, :2] = emitted[0, :2]
    beta[-1, -2:] = 0.0

    def skips(state):
        return state >= 2 and states[state] not in (blank, states[state - 2])

    for t in range(1, frames):
        for s in range(count):
            into = [
                alpha[t - 1, s],
                alpha[t - 1, s - 1] if s else -np.inf,
                alpha[t - 1, s - 2] if skips(s) else -np.inf,
            ]
            alpha[t, s] = logsumexp(into) + emitted[t, s]
    for t in reversed(range(frames - 1)):
        after = beta[t + 1] + emitted[t + 1]
        for s in range(count):
            onward = [after[s]]
            onward += [after[s + 1]] if s + 1 < count else []
            onward += [after[s + 2]] if s + 2 < count and skips(s + 2) else []
            beta[t, s] = logsumexp(onward)
    total = logsumexp(alpha[-1] + beta[-1])
    slope = np.zeros(logits.shape)
    slope[:frames] = np.exp(log_probs[:frames])
    for s, token in enumerate(states):
        slope[:frames, token] -= np.exp(alpha[:, s] + beta[:, s] - total)
    return -total, slope


def check(logits, frames, labels, lengths, blank, atol=1e-5):
    losses, pull = jax.vjp(
        lambda x: ctc_loss(x, jnp.asarray(frames), jnp.asarray(labels), jnp.asarray(lengths), blank),
        jnp.asarray(logits),
    )
    alone = ctc_loss(*map(jnp.asarray, (logits, frames, labels, lengths)), blank)
    np.testing.assert_allclose(alone, losses, rtol=1e-6)
    (slopes,) = pull(jnp.ones_like(losses))
    for row in range(len(logits)):
        expected, slope = by_hand(logits[row], frames[row], labels[row, : lengths[row]], blank)
        np.testing.assert_allclose(losses[row], expected, rtol=2e-6)
        np.testing.assert_allclose(slopes[row], slope, atol=atol)


@pytest.mark.filterwarnings("ignore:divide by zero")  # NumPy's logarithm of the impossible
@pytest.mark.parametrize("vocabulary", [5, 60])
@pytest.mark.parametrize("frames", [1, 2, 31, 32, 33, 70])
def test_lengths_around_the_blocks_and_vocabularies_above_and_below_the_labels(frames, vocabulary, rng):
    width = 9
    lengths = np.array([0, 1, 2, width], np.int32)
    labels = rng.integers(0, vocabulary - 1, (4, width)).astype(np.int32)
    labels[3, 4] = labels[3, 3]
    counts = np.maximum(np.array([frames, frames, max(frames - 1, 1), frames]), 1).astype(np.int32)
    if frames < width + 1:
        labels, lengths, counts = labels[:2], lengths[:2], counts[:2]
    logits = (3 * rng.standard_normal((len(lengths), frames, vocabulary))).astype(np.float32)
    check(logits, counts, labels, lengths, blank=vocabulary - 1)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_model_that_says_nothing_but_blank_and_one_that_is_sure_of_the_wrong(rng):
    frames, width, vocabulary = 120, 40, 12
    labels = rng.integers(1, vocabulary, (2, width)).astype(np.int32)
    logits = rng.standard_normal((2, frames, vocabulary)).astype(np.float32)
    logits[0, :, 0] += 30.0  # labels of 2 ** -43 each: all forty are far below what float32 holds
    logits[1] *= 400.0
    check(logits, np.array([frames, frames - 7]), labels, np.array([width, width - 3]), blank=0, atol=1e-4)


def test_a_thousand_frames_keep_the_accuracy_of_float32(rng):
    torch = pytest.importorskip("torch")
    batch, frames, vocabulary, width = 3, 1500, 64, 300
    logits = rng.standard_normal((batch, frames, vocabulary)).astype(np.float32)
    labels = rng.integers(1, vocabulary, (batch, width))
    counts, lengths = np.array([frames, 1201, 777]), np.array([width, 211, 150])
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        theirs.log_softmax(-1).transpose(0, 1), torch.tensor(labels), torch.tensor(counts), torch.tensor(lengths),
        reduction="none",
    )  # fmt: skip
    expected.sum().backward()
    losses, pull = jax.vjp(lambda x: ctc_loss(x, *map(jnp.asarray, (counts, labels, lengths)), 0), jnp.asarray(logits))
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(batch))[0], theirs.grad.numpy(), atol=5e-6)


def test_what_is_not_finite_is_told_from_what_is_impossible(rng):
    logits = rng.standard_normal((4, 20, 6)).astype(np.float32)
    labels = np.array([[1, 2, 3]] * 4)
    logits[0, 3, 2] = np.nan
    logits[1, :, 2] = -np.inf  # a token that the model rules out
    logits[2, 18, 4] = np.nan  # past the end of the row
    logits[3] *= 1e30
    frames, lengths = np.array([20, 20, 15, 20]), np.array([3, 3, 3, 3])
    losses, pull = jax.vjp(lambda x: ctc_loss(x, *map(jnp.asarray, (frames, labels, lengths)), 0), jnp.asarray(logits))
    assert np.isnan(losses[0]) and np.isposinf(losses[1]) and np.isfinite(losses[2]) and losses[3] > 1e3
    (slopes,) = pull(jnp.ones(4))
    assert not np.isfinite(slopes[0]).all()
    assert not slopes[1].any()
    assert np.isfinite(slopes[2][:15]).all() and np.isfinite(slopes[3]).all()


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_are_computed_with_in_float32(dtype, rng):
    logits = jnp.asarray(rng.standard_normal((2, 40, 7)), dtype)
    labels, frames, lengths = rng.integers(1, 7, (2, 5)), np.array([40, 33]), np.array([5, 3])
    losses, pull = jax.vjp(lambda x: ctc_loss(x, *map(jnp.asarray, (frames, labels, lengths)), 0), logits)
    (slopes,) = pull(jnp.ones(2))
    assert slopes.dtype == dtype
    for row in range(2):
        loss, slope = by_hand(np.asarray(logits[row], np.float32), frames[row], labels[row, : lengths[row]], 0)
        np.testing.assert_allclose(losses[row], loss, rtol=1e-5)
        np.testing.assert_allclose(slopes[row].astype(jnp.float32), slope, atol=8e-3)


@pytest.mark.parametrize("width", [0, 1])
def test_rows_without_labels_and_without_frames(width, rng):
    logits = rng.standard_normal((3, 12, 4)).astype(np.float32)
    labels, frames, lengths = np.ones((3, width), np.int32), np.array([12, 5, 0]), np.zeros(3, np.int32)
    losses, pull = jax.vjp(lambda x: ctc_loss(x, *map(jnp.asarray, (frames, labels, lengths)), 0), jnp.asarray(logits))
    of_blank = np.asarray(jax.nn.log_softmax(logits))[:, :, 0]
    np.testing.assert_allclose(losses, [-of_blank[0].sum(), -of_blank[1, :5].sum(), 0.0], rtol=1e-5)
    (slopes,) = pull(jnp.ones(3))
    expected = np.asarray(jax.nn.softmax(logits)) - (np.arange(4) == 0)
    np.testing.assert_allclose(slopes, expected * (np.arange(12) < frames[:, None])[:, :, None], atol=1e-6)
