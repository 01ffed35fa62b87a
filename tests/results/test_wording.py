"""Numbers as people read them."""

import math

import pytest

from mechlab.results.wording import apart, interval_text, three_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.123"),
        (-12.345, "-12.3"),
        (1234.5678, "1235"),
        (0.0000123456, "1.23e-05"),
        (40.0, "40"),
        (999_999, "999999"),
        (12_345_678.0, "1.23e+07"),
        (0.0, "0"),
        (math.nan, "–"),
        (-math.inf, "-∞"),
    ],
)
def test_three_digits(value, text):
    assert three_digits(value) == text


def test_unequal_numbers_read_as_unequal():
    assert apart(0.05, 0.3) == ("0.05", "0.3")
    assert apart(0.0499999, 0.05) == ("0.0499999", "0.05")
    assert apart(0.1 + 0.2, 0.3) == ("0.30000000000000004", "0.3")
    assert apart(0.12345, 0.12345) == ("0.123", "0.123")


def test_a_missing_interval_is_said_in_words():
    assert interval_text(0.1, 0.25) == "[0.1, 0.25]" and interval_text(math.nan, math.nan) == "no interval"
