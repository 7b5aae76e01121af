"""Numbers as a person writes them, by hand."""

from __future__ import annotations

import math

import pytest

from secateur.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (4_652_008, "4.65 M"),
        (17.6e9, "17.6 G"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert numbers.short(value) == text


def test_short_with_a_unit() -> None:
    assert numbers.short(14_156_352, "B") == "14.2 MB"
    assert numbers.short(12, "B") == "12 B"


def test_errors_shares_and_times() -> None:
    assert numbers.small(2.2204e-16) == "2.2e-16"
    assert numbers.small(0.0) == "0"
    assert numbers.percent(0.5436) == "54.4 %"
    assert numbers.milliseconds(0.021834) == "0.0218 ms"
    assert numbers.milliseconds(1.5) == "1.50 ms"
    assert numbers.plain(math.nan) == "nan"
    assert numbers.plain(0.812345678) == "0.81235"


@pytest.mark.parametrize(
    ("given", "text"),
    [((), ""), ((4,), "4"), ((0, 1, 2, 5), "0-2, 5"), ((1, 3, 5, 7, 8), "1, 3, ... (5 in all)"), ((1, 2, 4, 5), "1-2, 4-5")],
)
def test_ranges(given: tuple[int, ...], text: str) -> None:
    assert numbers.ranges(given, most=2) == text
