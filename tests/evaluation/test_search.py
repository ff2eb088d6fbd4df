"""Search, ranks and margins against NumPy's brute force."""

import numpy as np
import pytest

from xtremes_jax.evaluation.search import find, hits, margin_matches, top_k


def unit(rng, count, dim=16):
    vectors = rng.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def whole(rng, count, dim=6):
    """Small whole numbers: products are exact in float32 however they are summed, and many tie."""
    return rng.integers(-2, 3, (count, dim)).astype(np.float32)


def brute_force(queries, keys, k):
    similarities = queries.astype(np.float64) @ keys.T.astype(np.float64)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), order


@pytest.mark.parametrize("blocks", [(2048, 4096), (8, 16), (5, 7), (1, 1), (64, 3)])
@pytest.mark.parametrize(("queries", "keys", "k"), [(23, 50, 5), (1, 1, 3), (16, 4, 9), (40, 129, 1)])
def test_top_k_is_numpys_ties_included(rng, queries, keys, k, blocks):
    one, other = whole(rng, queries), whole(rng, keys)
    near = top_k(one, other, k, query_block=blocks[0], key_block=blocks[1])
    similarities, order = brute_force(one, other, k)
    np.testing.assert_array_equal(near.indices, order)
    np.testing.assert_array_equal(near.similarities, similarities)
    assert near.similarities.dtype == np.float32


def test_top_k_of_unit_vectors(rng):
    one, other = unit(rng, 300), unit(rng, 500)
    near = top_k(one, other, 10, query_block=64, key_block=100)
    similarities, order = brute_force(one, other, 10)
    np.testing.assert_array_equal(near.indices, order)
    np.testing.assert_allclose(near.similarities, similarities, atol=1e-6)


@pytest.mark.parametrize("blocks", [(2048, 4096), (5, 7), (4, 64)])
def test_ranks_and_losses(rng, blocks):
    queries, keys = whole(rng, 31), whole(rng, 40)
    key_labels = rng.permutation(np.r_[np.arange(20), rng.integers(0, 20, 15), [-1] * 5])
    query_labels = rng.integers(0, 20, 31)
    found = find(queries, keys, query_labels, key_labels, scale=0.7, query_block=blocks[0], key_block=blocks[1])
    similarities = queries.astype(np.float64) @ keys.T
    order = np.argsort(-similarities, axis=1, kind="stable")
    for row, label in enumerate(query_labels):
        assert found.ranks[row] == 1 + np.flatnonzero(key_labels[order[row]] == label)[0]
        odds = np.exp(0.7 * similarities[row])
        np.testing.assert_allclose(
            found.losses[row], -np.log(odds[key_labels == label].sum() / odds.sum()), rtol=1e-5, atol=1e-5
        )


def test_embeddings_that_are_all_alike_are_ranked_by_index():
    same = np.ones((6, 3), np.float32)
    found = find(same[:2], same, np.array([4, 0]), np.arange(6), scale=10.0, key_block=2)
    assert found.ranks.tolist() == [5, 1]
    np.testing.assert_allclose(found.losses, np.log(6), rtol=1e-6)


@pytest.mark.parametrize("key_block", [2, 4096])
def test_what_is_not_a_number_ranks_last(key_block):
    queries, keys = np.eye(2, 3, dtype=np.float32), np.eye(3, dtype=np.float32)
    queries[0] = np.nan
    found = find(queries, keys, np.array([0, 1]), np.arange(3), scale=1.0, key_block=key_block)
    assert found.ranks.tolist() == [3, 1]


def test_a_margin_by_hand():
    def at(*degrees):
        angle = np.radians(np.array(degrees, np.float64))
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    # Key 0 is a hub: nearest to all three queries. With k = 2:
    queries, keys = at(0, 20, 40), at(21, 60, -25)
    cosines = {
        (q, k): np.cos(np.radians(a - b)) for q, a in enumerate((0, 20, 40)) for k, b in enumerate((21, 60, -25))
    }
    around_keys = [  # the two nearest queries of each key
        (cosines[1, 0] + cosines[2, 0]) / 2,
        (cosines[2, 1] + cosines[1, 1]) / 2,
        (cosines[0, 2] + cosines[1, 2]) / 2,
    ]

    nearest = [(0, 2), (0, 1), (0, 1)]  # 21 and 25 degrees away; 1 and 40; 19 and 20
    expected = []
    for query, near in enumerate(nearest):
        around = sum(cosines[query, key] for key in near) / 2
        margins = [cosines[query, key] / ((around + around_keys[key]) / 2) for key in near]
        expected.append(near[int(np.argmax(margins))])
    assert top_k(queries, keys, 1).indices[:, 0].tolist() == [0, 0, 0]
    assert margin_matches(queries, keys, k=2).tolist() == expected == [2, 0, 1]
    assert hits(np.array([2, 0, 1]), np.array([7, 8, 9]), np.array([8, 9, 5])).tolist() == [False, True, True]


def test_margins_with_fewer_keys_than_neighbours(rng):
    queries, keys = unit(rng, 3), unit(rng, 2)
    cosines = queries @ keys.T
    margins = cosines / ((cosines.mean(axis=1)[:, None] + cosines.mean(axis=0)[None]) / 2)
    matches = margin_matches(queries, keys, k=4)
    np.testing.assert_array_equal(matches, margins.argmax(axis=1))
