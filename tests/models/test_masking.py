"""Per-row randomness, dropout, and the spans of SpecAugment against the reference's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.models.masking import Randomness, dropout, fold, frame_mask, span_count, spec_augment_mask


def keys(seed: int, rows: int) -> Randomness:
    """Keys of one step for `rows` rows."""
    shared = jax.random.key(seed)
    return Randomness(rows=jax.random.split(jax.random.fold_in(shared, 1), rows), shared=shared)


def reference_count(length: int, padded: int, prob: float, span: int, epsilon: float, least: int) -> int:
    """The rule of `_compute_mask_indices`, in Python's integers and doubles."""
    count = max(int(prob * length / span + epsilon), least)
    if count * span > padded:
        count = padded // span
    return max(length - (span - 1), 0) if length - (span - 1) < count else count


def runs_of_starts(mask: np.ndarray, span: int) -> int:
    """Checks that a row is made of whole spans, and returns how many positions it masks."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    assert all(end - start >= span for start, end in zip(edges[::2], edges[1::2], strict=True))
    return int(mask.sum())


def test_frame_mask_is_true_before_the_length():
    mask = frame_mask(jnp.array([0, 2, 3]), 3)
    np.testing.assert_array_equal(mask, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_dropout_keeps_the_share_and_the_mean(rng):
    x = jnp.asarray(rng.uniform(1, 2, (4, 100, 50)).astype(np.float32))
    y = dropout(x, 0.3, keys(0, 4))
    kept = np.asarray(y != 0)
    assert kept.mean() == pytest.approx(0.7, abs=0.02)
    np.testing.assert_allclose(np.asarray(y)[kept], np.asarray(x / 0.7)[kept], rtol=1e-6)
    assert (kept[0] != kept[1]).any()


def test_dropout_is_off_without_keys_and_at_rate_zero(rng):
    x = jnp.asarray(rng.standard_normal((2, 3)).astype(np.float32))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, keys(0, 2)) is x


def test_a_row_drops_the_same_whatever_its_batch(rng):
    x = jnp.asarray(rng.uniform(1, 2, (6, 30, 8)).astype(np.float32))
    whole = keys(3, 6)
    part = Randomness(rows=whole.rows[2:4], shared=whole.shared)
    np.testing.assert_array_equal(dropout(x, 0.4, whole)[2:4], dropout(x[2:4], 0.4, part))


def test_fold_gives_each_purpose_its_own_keys():
    randomness = keys(1, 3)
    one, two = fold(randomness, 1), fold(randomness, 2)
    assert not (jax.random.key_data(one.rows) == jax.random.key_data(two.rows)).all(axis=1).any()
    assert not (jax.random.key_data(one.shared) == jax.random.key_data(two.shared)).all()
    assert fold(None, 1) is None


@pytest.mark.parametrize(
    ("prob", "span", "least"), [(0.05, 10, 2), (0.65, 10, 2), (0.5, 3, 0), (1.0, 1, 0), (0.3, 7, 5)]
)
def test_span_count_is_the_references(prob, span, least, rng):
    lengths = np.arange(0, 400, dtype=np.int32)
    for epsilon in rng.uniform(0, 1, 5).astype(np.float32):
        ours = jax.vmap(
            lambda length, e=epsilon: span_count(
                length, jnp.float32(e), mask_prob=prob, mask_length=span, min_masks=least
            )
        )(jnp.asarray(lengths))
        expected = [reference_count(int(n), int(n), prob, span, float(epsilon), least) for n in lengths]
        np.testing.assert_array_equal(ours, expected)


def test_number_of_masked_positions_is_exact_where_no_rounding_is_left():
    lengths = jnp.array([20, 40, 60, 100], jnp.int32)
    mask = spec_augment_mask(keys(5, 4), lengths, 100, mask_prob=0.35, mask_length=1, min_masks=0)
    np.testing.assert_array_equal(mask.sum(axis=1), [7, 14, 21, 35])
    assert not mask[0, 20:].any() and not mask[1, 40:].any() and not mask[2, 60:].any()


def test_probabilistic_rounding_has_the_right_mean():
    lengths = jnp.full((4000,), 25, jnp.int32)
    mask = spec_augment_mask(keys(6, 4000), lengths, 25, mask_prob=0.13, mask_length=1, min_masks=0)
    counts = np.asarray(mask.sum(axis=1))
    assert set(counts) == {3, 4}
    assert counts.mean() == pytest.approx(3.25, abs=0.03)


def test_every_start_is_equally_likely():
    lengths = jnp.full((8000,), 10, jnp.int32)
    mask = spec_augment_mask(keys(7, 8000), lengths, 14, mask_prob=0.0, mask_length=3, min_masks=1)
    starts, counts = np.unique(np.argmax(mask, axis=1), return_counts=True)
    np.testing.assert_array_equal(np.asarray(mask.sum(axis=1)), 3)
    np.testing.assert_array_equal(starts, np.arange(8))
    np.testing.assert_allclose(counts, 1000, atol=5 * 1000**0.5)


def test_spans_are_whole_and_stay_inside_their_rows():
    lengths = jnp.arange(0, 60, dtype=jnp.int32)
    mask = np.asarray(spec_augment_mask(keys(8, 60), lengths, 64, mask_prob=0.3, mask_length=5, min_masks=2))
    for length, row in enumerate(mask):
        masked = runs_of_starts(row, 5)
        assert not row[length:].any()
        assert (masked >= 5) == (length >= 5)


def test_spec_augment_of_a_row_depends_on_nothing_else():
    randomness = keys(9, 5)
    lengths = jnp.array([50, 31, 44, 12, 60], jnp.int32)
    options = {"mask_prob": 0.4, "mask_length": 4, "min_masks": 2}
    whole = spec_augment_mask(randomness, lengths, 60, **options)
    alone = spec_augment_mask(Randomness(randomness.rows[1:2], randomness.shared), lengths[1:2], 31, **options)
    padded = spec_augment_mask(Randomness(randomness.rows[1:2], randomness.shared), lengths[1:2], 97, **options)
    np.testing.assert_array_equal(whole[1, :31], alone[0])
    np.testing.assert_array_equal(padded[0, :31], alone[0])
    assert not padded[0, 31:].any()


def test_an_axis_shorter_than_a_span_is_not_masked():
    mask = spec_augment_mask(keys(1, 2), jnp.array([4, 2]), 4, mask_prob=1.0, mask_length=5, min_masks=2)
    assert mask.shape == (2, 4) and not mask.any()


@pytest.mark.parametrize(("prob", "span", "least"), [(0.05, 10, 2), (0.65, 10, 2)])
def test_coverage_has_the_references_distribution(prob, span, least):
    pytest.importorskip("torch")
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

    rows, length = 1500, 180
    np.random.seed(4)
    theirs = np.concatenate([_compute_mask_indices((1, length), prob, span, min_masks=least) for _ in range(rows)])
    ours = np.asarray(
        spec_augment_mask(
            keys(10, rows),
            jnp.full((rows,), length, jnp.int32),
            length,
            mask_prob=prob,
            mask_length=span,
            min_masks=least,
        )
    )
    ours_covered, theirs_covered = ours.mean(axis=1), theirs.mean(axis=1)
    error = 5 * (ours_covered.std() + theirs_covered.std()) / rows**0.5
    assert ours_covered.mean() == pytest.approx(theirs_covered.mean(), abs=error)
    assert ours_covered.std() == pytest.approx(theirs_covered.std(), rel=0.15)
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=5 * (2 * 0.25 / rows) ** 0.5)


@pytest.mark.parametrize("frames", [31, 64])
def test_padding_changes_no_draw_of_dropout(frames, rng):
    x = jnp.asarray(rng.uniform(1, 2, (3, 30, 8)).astype(np.float32))
    padded = jnp.pad(x, ((0, 0), (0, frames - 30), (0, 0)), constant_values=1)
    np.testing.assert_array_equal(dropout(padded, 0.4, keys(4, 3))[:, :30], dropout(x, 0.4, keys(4, 3)))
