"""Finding equal rows and pairs by one number for each."""

import numpy as np
import pytest

from secateur.groups import distinct
from secateur.groups.distinct import distinct_pairs, distinct_rows


@pytest.mark.parametrize("shape", [(200, 3), (50, 1), (7, 0), (1, 5), (0, 4)])
def test_rows_are_rebuilt_from_the_different_ones(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(0).integers(-1, 3, shape)
    found, inverse = distinct_rows(table)
    assert np.array_equal(found[inverse], table)
    assert len(found) == len({tuple(row) for row in table.tolist()})


def test_rows_of_a_transposed_table() -> None:
    table = np.random.default_rng(0).integers(0, 2, (4, 60)).T
    found, inverse = distinct_rows(table)
    assert np.array_equal(found[inverse], table)
    assert len(found) == len({tuple(row) for row in table.tolist()})


def test_different_rows_with_one_sum_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "_scattered", np.ones_like)
    table = np.array([[1, 2], [2, 1], [1, 2], [3, 0]])
    found, inverse = distinct_rows(table)
    assert len(found) == 3
    assert np.array_equal(found[inverse], table)


def test_pairs_ascend_and_stand_once() -> None:
    first, second = distinct_pairs(np.array([3, 0, 3, 1, 0]), np.array([1, 5, 1, 0, 2]))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (0, 5), (1, 0), (3, 1)]
    assert distinct_pairs(*np.zeros((2, 0), dtype=np.int64))[0].size == 0
