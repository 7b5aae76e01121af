"""Slices, selections, splits and look-ups follow positions; joining and padding put them together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groups.by_hand import found, own, whole


@pytest.mark.parametrize(
    ("function", "positions"),
    [
        (lambda a: a[1:4], (1, 2, 3)),
        (lambda a: a[-3:], (3, 4, 5)),
        (lambda a: a.narrow(0, 2, 3), (2, 3, 4)),
        (lambda a: a[1::2], (1, 3, 5)),
        (lambda a: a[:5:2], (0, 2, 4)),
        (lambda a: a.chunk(2)[1], (3, 4, 5)),
        (lambda a: a.split([2, 3, 1])[1], (2, 3, 4)),
        (lambda a: a.tensor_split(2)[0], (0, 1, 2)),
        (lambda a: a.index_select(0, torch.tensor([5, 0, 2])), (5, 0, 2)),
    ],
)
def test_a_part_has_the_labels_of_its_place(function: object, positions: tuple[int, ...]) -> None:
    met = found(lambda a, b: function(a) + b, (6,), (3,))  # type: ignore[operator]
    assert met["b0"] == [f"a0[{p}]" for p in positions]


def test_a_part_of_another_dimension_changes_nothing() -> None:
    met = found(lambda a, b: a[:, 1:3] + b, (4, 6), (4, 2))
    assert (met["b0"], met["b1"]) == (own("a0", 4), ["a1[1]", "a1[2]"])


def test_parts_of_one_dimension_that_meet_go_together() -> None:
    assert found(lambda a: a.chunk(2)[0] * a.chunk(2)[1], (6,))["a0"] == own("a0", 3) * 2
    assert found(lambda a: a[::2] * a[1::2], (6,))["a0"] == ["a0[0]", "a0[0]", "a0[2]", "a0[2]", "a0[4]", "a0[4]"]


def test_a_single_position_that_is_picked_stays() -> None:
    met = found(lambda a: a[1].exp(), (3, 4))
    assert (met["a0"], met["a1"]) == (["a0[0]", None, "a0[2]"], own("a1", 4))
    met = found(lambda a: a.unbind(0)[0] * a.unbind(0)[1], (2, 3))
    assert (met["a0"], met["a1"]) == (whole(2), own("a1", 3))


def test_an_index_table_may_name_a_position_twice() -> None:
    met = found(lambda a, b: a.index_select(0, torch.tensor([0, 0, 1])) + b, (3,), (3,))
    assert met["b0"] == ["a0[0]", "a0[0]", "a0[1]"]


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a[torch.tensor([[0, 1], [2, 0]])],
        lambda a: a[torch.tensor([True, False, True])],
        lambda a: a.gather(0, torch.zeros(1, 4, dtype=torch.long)),
        lambda a: a.index_select(0, (a[0, :2] > 0).long()),
    ],
    ids=["table", "mask", "gather", "computed"],
)
def test_look_ups_hold_what_they_look_up(function: object) -> None:
    assert found(lambda a: function(a).exp(), (3, 4))["a0"] == whole(3)  # type: ignore[operator]


def test_rows_and_columns_meet_in_a_diagonal() -> None:
    met = found(lambda a, b: a.diagonal(dim1=1, dim2=2) + b, (2, 4, 4), (4,))
    assert met["b0"] == met["a2"] == met["a1"] == own("a1", 4)
    assert met["a0"] == own("a0", 2)
    assert found(lambda a: a.diagonal(1), (4, 4))["a0"] == whole(4)
    assert found(lambda a: a.diagonal(), (4, 5))["a1"] == whole(5)


def test_numbers_that_count_all_positions_hold_all() -> None:
    met = found(lambda a: a.take(torch.tensor([3, 1])), (2, 4))
    assert met["a0"] + met["a1"] == whole(6)
    assert "count all its positions" in met.why("a1")


def test_what_is_written_into_a_slice_meets_its_place() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        a = a.clone()
        a[1:3] = b
        return a

    assert found(function, (4,), (2,))["b0"] == ["a0[1]", "a0[2]"]


def test_joined_parts_follow_one_another() -> None:
    met = found(lambda a, b, c: torch.cat([a, b]) + c, (2,), (3,), (5,))
    assert met["c0"] == own("a0", 2) + own("b0", 3)


def test_the_other_dimensions_of_joined_parts_meet() -> None:
    met = found(lambda a, b: torch.cat([a, b], 1), (4, 2), (4, 3))
    assert met["b0"] == met["a0"] == own("a0", 4)
    assert (met["a1"], met["b1"]) == (own("a1", 2), own("b1", 3))


def test_joined_parts_without_labels_stay() -> None:
    met = found(lambda a, b: torch.cat([a, torch.rand(2)]) + b, (2,), (4,))
    assert met["b0"] == ["a0[0]", "a0[1]", None, None]


def test_joined_zeros_go_with_what_they_meet() -> None:
    met = found(lambda a, b: torch.cat([a, a.new_zeros(2)]) + b, (2,), (4,))
    assert met["b0"] == ["a0[0]", "a0[1]", "b0[2]", "b0[3]"]
    met = found(lambda a, b: torch.cat([torch.rand(2), a.new_zeros(2)]) + b, (2,), (4,))
    assert met["b0"] == [None, None, "b0[2]", "b0[3]"]


def test_stacked_parts_meet() -> None:
    met = found(lambda a, b: torch.stack([a, b], 1).exp(), (3, 4), (3, 4))
    assert (met["b0"], met["b1"]) == (own("a0", 3), own("a1", 4))
    assert set(met.fields("aten.stack")) <= {(frozenset({0}), False), (frozenset({2}), False)}


def test_rows_are_joined_along_a_dimension_that_varies_jointly() -> None:
    met = found(lambda a, b, c: torch.cat([a.reshape(2, 2), b.reshape(2, 2)], 1).reshape(8) + c, (4,), (4,), (8,))
    assert met["c0"] == ["a0[0]", "a0[1]", "b0[0]", "b0[1]", "a0[2]", "a0[3]", "b0[2]", "b0[3]"]


def test_padded_places_may_go_with_what_they_meet() -> None:
    met = found(lambda a, b: F.pad(a, (1, 2)) + b, (3,), (6,))
    assert met["b0"] == ["b0[0]", "a0[0]", "a0[1]", "a0[2]", "b0[4]", "b0[5]"]


def test_negative_padding_cuts() -> None:
    assert found(lambda a, b: F.pad(a, (-1, 0)) + b, (4,), (3,))["b0"] == ["a0[1]", "a0[2]", "a0[3]"]


def test_padding_of_other_dimensions_passes() -> None:
    assert found(lambda a, b: F.pad(a, (1, 1)) + b, (3, 4), (3, 1))["b0"] == own("a0", 3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_values_of_its_own_holds_the_dimension(mode: str) -> None:
    met = found(lambda a: F.pad(a, (1, 1), mode=mode).exp(), (2, 3, 4))
    assert (met["a1"], met["a2"]) == (own("a1", 3), whole(4))
