"""Fields: compact label arrays, and how they follow a reshape."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.groups.fields import Field, aligned, compact, hierarchy, regroup, reshaped, rows


def arange(*shape: int) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def test_compact_labels_have_size_one_where_they_do_not_vary() -> None:
    assert compact(np.broadcast_to(arange(3, 1), (3, 4))).tolist() == [[0], [1], [2]]
    assert compact(np.full((2, 3), 7)).tolist() == [[7]]
    assert compact(arange(2, 3)).shape == (2, 3)


def test_dimensions_of_a_field_are_those_in_which_labels_vary() -> None:
    assert Field(arange(3, 1, 4)).dims == {0, 2}
    assert aligned(Field(arange(3)), 3).dims == {2}


@pytest.mark.parametrize(
    ("old", "new", "runs"),
    [
        ((6,), (2, 3), [([0], [0, 1])]),
        ((2, 3), (6,), [([0, 1], [0])]),
        ((2, 3, 4), (2, 12), [([0], [0]), ([1, 2], [1])]),
        ((4, 6), (2, 2, 6), [([0], [0, 1]), ([1], [2])]),
        ((4, 6), (3, 8), [([0, 1], [0, 1])]),
        ((1, 3), (3,), [([0, 1], [0])]),
    ],
)
def test_a_reshape_factors_into_runs_of_equal_size(
    old: tuple[int, ...], new: tuple[int, ...], runs: list[tuple[list[int], list[int]]]
) -> None:
    found = [([d for d in left if old[d] > 1], [d for d in right if new[d] > 1]) for left, right in regroup(old, new)]
    assert [f for f in found if any(f)] == [([d for d in a if old[d] > 1], b) for a, b in runs]


def test_labels_follow_a_reshape_without_being_spread_over_other_dimensions() -> None:
    split = reshaped(Field(arange(1, 6)), (10**13, 6), (10**13, 2, 3))
    assert split.labels.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    merged = reshaped(Field(arange(2, 1)), (2, 3), (6,))
    assert merged.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_block_fields_name_the_outer_dimensions() -> None:
    unit = Field(arange(2, 3, 4))
    blocks = [Field(arange(1, 3, 1), block=True), Field(arange(2, 3, 1), block=True)]
    assert hierarchy(unit, [unit, *blocks]) == [1, 0, 2]
    assert hierarchy(unit, [unit]) == [0, 1, 2]
    assert rows(unit, [1, 0, 2])[1].tolist() == [12, 13, 14, 15]
