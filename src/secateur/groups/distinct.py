"""Which rows of a table, and which pairs of numbers, are equal: found by sorting one number for each."""

from __future__ import annotations

import numpy as np

from secateur.groups.fields import Labels

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def distinct_rows(table: Labels) -> tuple[Labels, Labels]:
    """The different rows of a table ``(rows, width)``, in a fixed order, and for each row which of them it is.

    Rows are sorted by a sum that equal rows share; if different ones share it too, they are sorted whole.
    """
    factors = _scattered(np.arange(1, table.shape[1] + 1, dtype=np.uint64))
    sums = table.view(np.uint64) @ factors if table.shape[1] else np.zeros(len(table), dtype=np.uint64)
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    if np.array_equal(table[first][inverse], table):
        return table[first], inverse
    distinct, inverse = np.unique(table, axis=0, return_inverse=True)
    return distinct, inverse.reshape(-1)


def distinct_pairs(first: Labels, second: Labels) -> tuple[Labels, Labels]:
    """The different pairs of numbers from zero on, in ascending order."""
    width = int(second.max(initial=0)) + 1
    left, right = np.divmod(np.unique(first * width + second), width)
    return left, right


def _scattered(x: np.ndarray) -> np.ndarray:
    """Odd factors with bits all over."""
    x = x * _GOLDEN
    return np.asarray((x ^ x >> np.uint64(31)) * np.uint64(0xBF58476D1CE4E5B9) | np.uint64(1))
