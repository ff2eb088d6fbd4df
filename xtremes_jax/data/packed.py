"""Sequences of many small things in one block of memory, which pickle at the speed of a copy."""

from collections.abc import Iterable, Sequence

import numpy as np


class PackedArrays(Sequence[np.ndarray]):
    """N arrays `[n_i]` int32, end to end in one array; item i is a view of it."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
        self._values = np.concatenate([np.empty(0, np.int32), *arrays], dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> np.ndarray:
        start, end = _span(self._ends, index)
        return self._values[start:end]


class PackedTexts(Sequence[str]):
    """N texts, end to end in one piece of UTF-8."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start, end = _span(self._ends, index)
        return self._bytes[start:end].decode("utf-8", "surrogatepass")


def _span(ends: np.ndarray, index: int) -> tuple[int, int]:
    if not 0 <= index < len(ends):
        raise IndexError(f"item {index} of {len(ends)}")
    return int(ends[index - 1]) if index else 0, int(ends[index])
