"""Numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def exact(value: int) -> str:
    """All digits: ``4,652,008``."""
    return f"{value:,}"


def short(value: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: ``4.65 M``, ``18.6 MB``."""
    for scale, prefix in _STEPS:
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def milliseconds(value: float) -> str:
    """A time with three digits: ``12.3 ms``."""
    return f"{_three_digits(value)} ms"


def percent(share: float) -> str:
    """A share with one decimal: ``54.4 %``."""
    return f"{100 * share:.1f} %"


def small(value: float) -> str:
    """An error with two digits: ``2.2e-15``."""
    return f"{value:.2g}"


def plain(value: float) -> str:
    """A figure of unknown kind with up to five digits."""
    return f"{value:.5g}" if math.isfinite(value) else str(value)


def ranges(numbers: Sequence[int], most: int = 16) -> str:
    """Sorted numbers with runs drawn together and the tail left out: ``0-3, 7, ... (29 in all)``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:most])
    return shown if len(runs) <= most else f"{shown}, ... ({len(numbers)} in all)"


def rank(values: Sequence[int]) -> str:
    """The ranks of all modes: ``16 x 32``."""
    return " x ".join(map(str, values))


def share_or_none(value: float | None) -> str:
    """A share with one decimal, or nothing where it is unknown."""
    return "" if value is None else percent(value)


def _three_digits(value: float) -> str:
    digits = next((digits for digits, least in enumerate((99.95, 9.995, 0.9995)) if abs(value) >= least), None)
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"
