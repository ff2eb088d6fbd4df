"""Packed sequences are the lists they were made of, and far smaller to pickle."""

import pickle

import numpy as np
import pytest

from xtremes_jax.data.packed import PackedArrays, PackedTexts


def test_arrays(rng):
    arrays = [rng.integers(0, 99, length).astype(np.int32) for length in (3, 0, 1, 7, 0)]
    packed = pickle.loads(pickle.dumps(PackedArrays(arrays)))
    assert len(packed) == 5 and all(array.dtype == np.int32 for array in packed)
    assert [array.tolist() for array in packed] == [array.tolist() for array in arrays]
    assert len(PackedArrays([])) == 0


def test_texts():
    texts = ["a/b.wav", "", "zażółć \U0001f600", "\udc80odd", "x"]
    packed = pickle.loads(pickle.dumps(PackedTexts(texts)))
    assert list(packed) == texts and packed[np.int64(2)] == texts[2]
    for index in (5, -1):
        with pytest.raises(IndexError, match=f"item {index} of 5"):
            packed[index]


def test_they_are_small_to_pickle():
    arrays = [np.full(5, number, np.int32) for number in range(1000)]
    assert len(pickle.dumps(PackedArrays(arrays))) < 1000 * (20 + 8) + 1000 < 0.6 * len(pickle.dumps(arrays))
