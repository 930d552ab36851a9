import math

import pytest

from sluice.report.figures import duration, fraction, number, printable, quantity

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "text"), [(0.31, ".31"), (0, ".00"), (0.999, "1.0"), (1, "1.0"), (NAN, "–"), (INF, "–")]
)
def test_a_fraction_has_two_digits_and_no_leading_zero(value, text):
    assert fraction(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.9, "0.9"), (1.0, "1"), (10.0, "10"), (0.04, "0"), (NAN, "–")])
def test_a_number_drops_decimals_that_say_nothing(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.6, "1.0k"), (9812, "9.8k"), (99_960, "100k"), (1_102_000, "1.1M"), (NAN, "–")],
)
def test_a_quantity_has_a_suffix(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (71.7, "1:12"), (59.6, "1:00"), (3723, "1:02:03"), (NAN, "–"), (-1, "–")]
)
def test_a_duration_is_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


def test_escape_sequences_become_visible_and_line_breaks_stay():
    assert printable("a\tb\n\x1b[31mc\x7f\x9b") == "a\tb\n␛[31mc␡\ufffd"
