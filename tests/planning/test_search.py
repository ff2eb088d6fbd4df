"""The search for the largest batch, against every answer that there can be."""

import pytest

from xtremes_jax.planning.search import largest_that_fits


@pytest.mark.parametrize("most", [1, 2, 7, 64])
def test_finds_the_largest_from_any_start_and_asks_once(most):
    for limit in range(most + 3):
        for start in range(1, most + 3):
            asked = []

            def fits(number, limit=limit, asked=asked):
                asked.append(number)
                return number <= limit

            assert largest_that_fits(fits, start, most) == min(limit, most)
            assert len(asked) == len(set(asked)) <= 2 * most.bit_length() + 1
            assert all(1 <= number <= most for number in asked)
