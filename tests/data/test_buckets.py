"""Bucket edges against brute force; plans by property: every clip once, every batch fits, one shape per bucket."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtremes_jax.data.buckets import (
    PlannedBatch,
    batch_edges,
    bucket_edges,
    label_widths,
    plan_epoch,
    rows_per_bucket,
)

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(np.array)
CLIPS = st.lists(st.integers(300, 480_000), min_size=1, max_size=150).map(np.array)
SIZES = st.one_of(
    st.builds(
        lambda shares, multiple: {"batch_size": shares * multiple, "multiple": multiple},
        st.integers(1, 9),
        st.integers(1, 3),
    ),
    st.builds(
        lambda samples, multiple: {"max_batch_samples": samples, "multiple": multiple},
        st.integers(100_000, 3_000_000),
        st.integers(1, 4),
    ),
)


def heavy_tailed(clips: int, seed: int = 0) -> np.ndarray:
    """Lengths like those of telephone prompts: a median of 1.4 s, a twentieth beyond 8 s, 30 s at most."""
    seconds = np.random.default_rng(seed).lognormal(np.log(1.4), 1.0, clips)
    return (np.clip(seconds, 0.3, 30) * 16_000).astype(np.int64)


def padding_fraction(plan: list[PlannedBatch], num_samples: np.ndarray) -> float:
    """Share of all samples of a plan's batches that is not audio, filler rows included."""
    total = sum(batch.rows * batch.bucket_samples for batch in plan)
    return 1 - sum(int(num_samples[batch.indices].sum()) for batch in plan) / total


def single_clip_padding(edges, lengths, weights=1) -> float:
    padded = np.asarray(edges)[np.searchsorted(edges, lengths)]
    return float(((padded - lengths) * weights).sum())


def all_edge_choices(candidates, longest, max_buckets):
    for count in range(max_buckets):
        for chosen in itertools.combinations([c for c in candidates if c < longest], count):
            yield np.array([*chosen, longest])


@given(LENGTHS, st.integers(1, 5), st.sampled_from([1, 3, 7]), st.booleans())
@settings(deadline=None, max_examples=150)
def test_edges_are_as_good_as_the_best_of_all_choices(lengths, max_buckets, quantum, weighted):
    weights = np.arange(1, len(lengths) + 1) % 4 if weighted else np.ones(len(lengths), int)
    edges = bucket_edges(lengths, max_buckets, quantum, weights=weights)
    candidates = np.unique(-(-lengths // quantum) * quantum)
    choices = all_edge_choices(candidates, candidates[-1], max_buckets)
    best = min(single_clip_padding(choice, lengths, weights) for choice in choices)
    assert single_clip_padding(edges, lengths, weights) == best
    assert len(edges) <= max_buckets and np.all(np.diff(edges) > 0) and edges[-1] == candidates[-1]
    assert np.all(edges % quantum == 0)


def test_two_lengths_need_two_edges_and_no_more():
    np.testing.assert_array_equal(bucket_edges(np.array([320, 960, 320, 960, 960])), [320, 960])
    np.testing.assert_array_equal(bucket_edges(np.array([321, 960]), max_buckets=1), [960])


def test_very_long_clips_coarsen_the_grid_but_still_fit():
    lengths = np.array([16_000, 50_000, 16_000 * 3_600])
    edges = bucket_edges(lengths, 2)
    assert len(edges) == 2 and edges[-1] >= lengths.max() and edges[-1] % 320 == 0
    assert edges[-1] < lengths.max() * 1.001


def total_samples(lengths, edges, **size) -> int:
    return sum(b.rows * b.bucket_samples for b in plan_epoch(lengths, edges, **size))


@given(LENGTHS, st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None, max_examples=100)
def test_edges_for_fixed_rows_are_optimal_for_the_plan(lengths, rows, max_buckets):
    edges = batch_edges(lengths, batch_size=rows, max_buckets=max_buckets, quantum=1)
    choices = all_edge_choices(np.unique(lengths), lengths.max(), max_buckets)
    best = min(total_samples(lengths, e, batch_size=rows) for e in choices)
    assert total_samples(lengths, edges, batch_size=rows) == best


def cheapest_total(descending, rows_of, buckets) -> float:
    """Least padded samples if each bucket is as long as the clip it begins with: every number of batches tried."""
    if not descending or not buckets:
        return math.inf if descending else 0
    edge, rows = descending[0], rows_of(descending[0])
    counts = range(1, math.ceil(len(descending) / rows) + 1)
    return min(n * rows * edge + cheapest_total(descending[n * rows :], rows_of, buckets - 1) for n in counts)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=11, unique=True).map(np.array),
    st.integers(1, 3),
    st.integers(5, 120),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=100)
def test_edges_for_a_budget_are_optimal_for_the_plan(lengths, multiple, budget, max_buckets):
    size = {"max_batch_samples": budget, "multiple": multiple}
    edges = batch_edges(lengths, max_buckets=max_buckets, quantum=1, **size)
    descending = sorted(lengths.tolist(), reverse=True)
    best = cheapest_total(descending, lambda edge: max(1, budget // edge // multiple) * multiple, max_buckets)
    assert total_samples(lengths, edges, **size) == best


@given(CLIPS, SIZES, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2), st.integers(1, 16))
@settings(deadline=None, max_examples=150)
def test_every_plan_keeps_its_promises(lengths, size, grouped, shuffle, drop_last, epoch, max_buckets):
    edges = batch_edges(lengths, group_by_length=grouped, max_buckets=max_buckets, **size)
    options = {"group_by_length": grouped, "shuffle": shuffle, "drop_last": drop_last, "seed": 5, **size}
    plan = plan_epoch(lengths, edges, epoch=epoch, **options)
    planned = np.concatenate([b.indices for b in plan]) if plan else np.array([], int)
    assert len(np.unique(planned)) == len(planned)
    if not drop_last:
        np.testing.assert_array_equal(np.sort(planned), np.arange(len(lengths)))
    ragged = [b for b in plan if len(b.indices) < b.rows]
    assert len(ragged) <= (0 if drop_last else 1)
    for batch in plan:
        longest = lengths[batch.indices].max()
        assert batch.bucket_samples == edges[np.searchsorted(edges, longest)]
        assert batch.rows % size["multiple"] == 0
    shapes = {(b.bucket_samples, b.rows) for b in plan}
    assert len(shapes) == len({samples for samples, _ in shapes}) <= max_buckets
    # As many steps in every epoch, and the same plan whenever it is asked for.
    again, other = plan_epoch(lengths, edges, epoch=epoch, **options), plan_epoch(lengths, edges, epoch=7, **options)
    assert len(other) == len(plan)
    for one, two in zip(plan, again, strict=True):
        np.testing.assert_array_equal(one.indices, two.indices)
        assert one[1:] == two[1:]


@pytest.mark.parametrize("size", [{"batch_size": 8}, {"max_batch_samples": 640_000, "multiple": 2}])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_first_epoch_begins_with_the_longest_bucket(size, grouped):
    lengths = heavy_tailed(400)
    edges = batch_edges(lengths, group_by_length=grouped, **size)
    firsts = []
    for seed in range(5):
        plan = plan_epoch(lengths, edges, seed=seed, group_by_length=grouped, **size)
        assert plan[0].bucket_samples == max(b.bucket_samples for b in plan)
        later = plan_epoch(lengths, edges, seed=seed, epoch=1, group_by_length=grouped, **size)
        firsts.append(later[0].bucket_samples)
    assert len(set(firsts)) > 1, "later epochs begin anywhere"


def test_epochs_and_seeds_mix_clips_differently():
    lengths = heavy_tailed(600)
    edges = batch_edges(lengths, batch_size=8)

    def together(**options):
        plan = plan_epoch(lengths, edges, batch_size=8, **options)
        return {frozenset(b.indices.tolist()) for b in plan}

    assert len(together(epoch=1) & together(epoch=2)) < 8
    assert len(together(seed=1) & together(seed=2)) < 8


def test_evaluation_goes_from_long_to_short_and_keeps_ties_in_order():
    lengths = np.array([500, 900, 500, 700, 900])
    plan = plan_epoch(lengths, np.array([500, 900]), batch_size=2, shuffle=False)
    assert [b.indices.tolist() for b in plan] == [[1, 4], [3, 0], [2]]
    assert [b.bucket_samples for b in plan] == [900, 900, 500]


def test_padding_counts_filler_rows():
    lengths = np.array([100, 60, 40])
    plan = [PlannedBatch(np.array([0, 1]), 100, 2), PlannedBatch(np.array([2]), 50, 2)]
    assert padding_fraction(plan, lengths) == pytest.approx(1 - 200 / 300)


@pytest.mark.parametrize("rows", [8, 16, 32])
def test_grouping_pads_little_on_a_heavy_tailed_corpus(rows):
    """16 lengths pad single clips by 11.7%; the rest is the price of whole batches."""
    lengths = heavy_tailed(1_871)
    plan = plan_epoch(lengths, batch_edges(lengths, batch_size=rows), batch_size=rows)
    assert padding_fraction(plan, lengths) <= 0.18


@pytest.mark.parametrize("seconds", [40, 80, 120, 160])
@pytest.mark.parametrize("multiple", [1, 8])
def test_a_budget_in_seconds_pads_little_and_is_kept(seconds, multiple):
    lengths = heavy_tailed(1_871)
    size = {"max_batch_samples": seconds * 16_000, "multiple": multiple}
    plan = plan_epoch(lengths, batch_edges(lengths, **size), **size)
    assert padding_fraction(plan, lengths) < 0.14
    for batch in plan:
        assert batch.rows * batch.bucket_samples <= size["max_batch_samples"] or batch.rows == multiple


def like_mls(clips: int, seed: int) -> np.ndarray:
    """Uniform between 10 and 20 s."""
    return (np.random.default_rng(seed).uniform(10, 20, clips) * 16_000).astype(np.int64)


def like_minds14(clips: int, seed: int) -> np.ndarray:
    """Log-normal with a median of 8 s, between 2 and 30 s."""
    seconds = np.random.default_rng(seed).lognormal(np.log(8), 0.6, clips)
    return (np.clip(seconds, 2, 30) * 16_000).astype(np.int64)


BENCHMARK_SIZES = [
    *({"batch_size": rows} for rows in (8, 16, 32, 64)),
    {"batch_size": 64, "multiple": 16},  # MLS as the reference does it: 4 clips on each of 8 devices, twice
    {"max_batch_samples": 80 * 16_000},
    {"max_batch_samples": 8 * 80 * 16_000, "multiple": 8},
]


@pytest.mark.parametrize("size", BENCHMARK_SIZES, ids=str)
@pytest.mark.parametrize(("clips", "seed"), [(3_000, 0), (4_096, 1), (10_000, 2)])
@pytest.mark.parametrize(("lengths_of", "most"), [(like_mls, 0.04), (like_minds14, 0.09)])
def test_at_most_16_shapes_pad_little_on_the_benchmarks_durations(lengths_of, most, clips, seed, size):
    lengths = lengths_of(clips, seed)
    edges = batch_edges(lengths, **size)
    for options in ({"epoch": 0}, {"epoch": 1, "seed": seed}, {"shuffle": False}):
        plan = plan_epoch(lengths, edges, **options, **size)
        assert len({(batch.bucket_samples, batch.rows) for batch in plan}) <= 16
        assert padding_fraction(plan, lengths) <= most


@pytest.mark.parametrize(("lengths_of", "optimum"), [(like_mls, 0.021), (like_minds14, 0.065)])
def test_batches_of_8_pad_hardly_more_than_single_clips_would(lengths_of, optimum):
    lengths = lengths_of(10_000, 3)
    plan = plan_epoch(lengths, batch_edges(lengths, batch_size=8), batch_size=8)
    assert padding_fraction(plan, lengths) <= optimum + 0.003


@pytest.mark.parametrize("clips", [300, 1_871])
def test_scoring_by_seconds_pads_less_than_32_rows_and_takes_fewer_batches_than_8(clips):
    lengths = heavy_tailed(clips)

    def plan(**size):
        return plan_epoch(lengths, batch_edges(lengths, **size), shuffle=False, **size)

    by_seconds = plan(max_batch_samples=64 * 16_000)
    assert padding_fraction(by_seconds, lengths) < 0.75 * padding_fraction(plan(batch_size=32), lengths)
    assert len(by_seconds) < 0.4 * len(plan(batch_size=8))


def test_large_corpora_take_the_edges_of_single_clips_with_little_loss():
    lengths = heavy_tailed(20_000)
    size = {"max_batch_samples": 160 * 16_000}
    edges = batch_edges(lengths, **size)
    np.testing.assert_array_equal(edges, bucket_edges(lengths))
    best = single_clip_padding(edges, lengths)
    assert padding_fraction(plan_epoch(lengths, edges, **size), lengths) < best / (best + lengths.sum()) + 0.02


def test_edges_for_plain_shuffling_pad_less_than_those_for_single_clips():
    lengths = heavy_tailed(2_000)

    def padding(edges):
        plans = [plan_epoch(lengths, edges, batch_size=16, epoch=e, group_by_length=False) for e in range(1, 4)]
        return np.mean([padding_fraction(plan, lengths) for plan in plans])

    assert padding(batch_edges(lengths, batch_size=16, group_by_length=False)) < padding(bucket_edges(lengths)) - 0.005


@given(CLIPS, st.integers(1, 8), st.data())
@settings(deadline=None, max_examples=60)
def test_labels_of_every_clip_fit_every_bucket_that_holds_it(lengths, max_buckets, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 300), min_size=len(lengths), max_size=len(lengths))))
    edges = bucket_edges(lengths, max_buckets)
    widths = label_widths(edges, lengths, labels)
    assert widths.shape == edges.shape
    for edge, width in zip(edges, widths, strict=True):
        longest = labels[lengths <= edge].max(initial=0)
        assert width == (1 if labels.max() <= 1 else max(8, math.ceil(longest / 8) * 8))


def test_rows_of_a_budget():
    edges = np.array([1_000, 3_000, 50_000])
    np.testing.assert_array_equal(rows_per_bucket(edges, max_batch_samples=10_000), [10, 3, 1])
    np.testing.assert_array_equal(rows_per_bucket(edges, max_batch_samples=10_000, multiple=4), [8, 4, 4])
    np.testing.assert_array_equal(rows_per_bucket(edges, batch_size=12, multiple=4), [12, 12, 12])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bucket_edges(np.array([], int)), "at least one clip"),
        (lambda: bucket_edges(np.array([5, 0])), "clip 1 has 0 samples"),
        (lambda: bucket_edges(np.array([5]), 0), "at least one bucket"),
        (lambda: rows_per_bucket(np.array([5])), "exactly one"),
        (lambda: rows_per_bucket(np.array([5]), batch_size=2, max_batch_samples=9), "exactly one"),
        (lambda: batch_edges(np.array([5]), batch_size=2, max_batch_samples=9), "exactly one"),
        (lambda: rows_per_bucket(np.array([5]), batch_size=6, multiple=4), "multiple of 4"),
        (lambda: plan_epoch(np.array([9]), np.array([5]), batch_size=1), "longer than the last bucket edge"),
    ],
)
def test_impossible_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
