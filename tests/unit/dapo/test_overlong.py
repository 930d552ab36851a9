"""Soft overlong punishment: DAPO eq. 13."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.dapo.overlong import overlong_penalty


@pytest.mark.parametrize(
    ("response_tokens", "penalty"),
    [(0, 0.0), (16383, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20480, -1.0), (20481, -1.0)],
)
def test_eq_13_with_the_numbers_of_the_paper(response_tokens: int, penalty: float) -> None:
    assert overlong_penalty(response_tokens, max_response_length=20480, buffer_len=4096, penalty_factor=1.0) == penalty


@given(st.integers(2, 500), st.data())
def test_the_penalty_falls_steadily_from_zero_to_minus_its_factor(limit: int, data: st.DataObject) -> None:
    buffer_len = data.draw(st.integers(1, limit - 1))
    factor = data.draw(st.just(0.0) | st.floats(0.01, 5))
    curve = [
        overlong_penalty(tokens, max_response_length=limit, buffer_len=buffer_len, penalty_factor=factor)
        for tokens in range(limit + 3)
    ]
    assert curve[0] == 0.0
    assert curve[limit] == curve[-1] == -factor
    assert all(later <= earlier for earlier, later in itertools.pairwise(curve))
    assert sum(value < 0 for value in curve[: limit + 1]) == (buffer_len if factor > 0 else 0)


@pytest.mark.parametrize(
    ("response_tokens", "buffer_len", "penalty_factor", "named"),
    [(5, 0, 1.0, "len"), (5, 10, 1.0, "len"), (5, 4, -1.0, "penalty_factor"), (-1, 4, 1.0, "response_tokens")],
)
def test_impossible_settings_are_refused_by_name(
    response_tokens: int, buffer_len: int, penalty_factor: float, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        overlong_penalty(response_tokens, max_response_length=10, buffer_len=buffer_len, penalty_factor=penalty_factor)
