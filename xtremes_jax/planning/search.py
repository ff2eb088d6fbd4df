"""The largest number for which something holds: what fits into memory."""

from collections.abc import Callable


def largest_that_fits(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 if none does: doubled from `start` on, then by bisection.

    Args:
        fits: whether a number does; where one does, every smaller one is taken to. Asked once for a number.
        start: the first to be tried.
    """
    low, high, number = 0, most + 1, min(start, most)
    while high > most and low < most:
        if fits(number):
            low, number = number, min(2 * number, most)
        else:
            high = number
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
