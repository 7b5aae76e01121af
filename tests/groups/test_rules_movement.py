"""Data movement runs on the labels themselves."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from groups.by_hand import found, own, whole


@pytest.mark.parametrize(
    ("function", "order"),
    [
        (lambda a: a.permute(2, 0, 1), (2, 0, 1)),
        (lambda a: a.transpose(0, 2), (2, 1, 0)),
        (lambda a: a.mT, (0, 2, 1)),
        (lambda a: a.movedim(0, -1), (1, 2, 0)),
        (lambda a: a.swapaxes(0, 1), (1, 0, 2)),
    ],
)
def test_dimensions_change_places(function: object, order: tuple[int, ...]) -> None:
    shape = tuple((2, 3, 4)[d] for d in order)
    met = found(lambda a, b: function(a) + b, (2, 3, 4), shape)  # type: ignore[operator]
    assert [met[f"b{d}"] for d in range(3)] == [own(f"a{d}", (2, 3, 4)[d]) for d in order]


@pytest.mark.parametrize(
    "function", [lambda a: a.unsqueeze(1), lambda a: a[:, None], lambda a: a.reshape(3, 1, 4), lambda a: a.unflatten(1, (1, 4))]
)
def test_dimensions_of_size_one_come_and_go(function: object) -> None:
    met = found(lambda a, b: (function(a) + b).squeeze(1) * 2, (3, 4), (3, 1, 4))  # type: ignore[operator]
    assert (met["b0"], met["b2"]) == (own("a0", 3), own("a1", 4))


@pytest.mark.parametrize("split", [lambda a: a.reshape(2, 3), lambda a: a.view(2, -1), lambda a: a.unflatten(0, (2, 3))])
def test_a_dimension_that_splits_has_rows_of_equal_length(split: object) -> None:
    met = found(lambda a: split(a).exp(), (6,))  # type: ignore[operator]
    assert met["a0"] == own("a0", 6)
    assert met.heads("a0") == [0, 0, 0, 1, 1, 1]
    assert met.rectangles == [(2, 3)]
    assert set(met.fields("aten.reshape")) == {(frozenset({0, 1}), False), (frozenset({0}), True)}


def test_a_split_and_a_merge_in_the_same_order_leave_all_as_it_was() -> None:
    met = found(lambda a, b: a.reshape(2, 3).exp().reshape(6) + b, (6,), (6,))
    assert met["b0"] == own("a0", 6)


def test_a_split_and_a_merge_in_another_order_are_a_table_of_positions() -> None:
    met = found(lambda a, b: a.reshape(2, 3).t().reshape(6) + b, (6,), (6,))
    assert met["b0"] == ["a0[0]", "a0[3]", "a0[1]", "a0[4]", "a0[2]", "a0[5]"]
    assert met["a0"] == own("a0", 6)


def test_a_merge_in_another_order_after_arithmetic_joins_the_rows() -> None:
    met = found(lambda a, b: a.reshape(2, 3).t().exp().reshape(6) + b, (6,), (6,))
    assert met["a0"] == own("a0", 3) * 2
    assert met["b0"] == [name for name in own("a0", 3) for _ in range(2)]


@pytest.mark.parametrize(("shape", "inner"), [((2, 3), "a1"), ((3, 2), "a0")])
def test_dimensions_with_labels_of_their_own_merge_into_rows_that_go_whole_and_columns(shape: tuple[int, int], inner: str) -> None:
    met = found(lambda a, b: a.reshape(6) + b, shape, (6,))
    places = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    assert met["b0"] == [f"{inner}[{place[int(inner[1])]}]" for place in places]
    assert len(set(met.heads("b0"))) == 2
    assert (2, 3) in met.rectangles


def test_repeats_lie_behind_one_another_or_side_by_side() -> None:
    a, b, c = own("a0", 3)
    assert found(lambda x, y: x.repeat(2) + y, (3,), (6,))["b0"] == [a, b, c, a, b, c]
    assert found(lambda x, y: x.tile(2) + y, (3,), (6,))["b0"] == [a, b, c, a, b, c]
    assert found(lambda x, y: x.repeat_interleave(2, 0) + y, (3,), (6,))["b0"] == [a, a, b, b, c, c]


def test_repeats_in_a_new_dimension_are_as_many_as_what_they_meet_has() -> None:
    met = found(lambda a, b: a.repeat(2, 1) + b, (3,), (2, 1))
    assert (met["a0"], met["b0"]) == (own("a0", 3), own("b0", 2))
    assert met.fields("aten.repeat") == [(frozenset({1}), False), (frozenset({0}), False)]


def test_expanding_repeats_what_has_no_labels() -> None:
    met = found(lambda a, b: a.expand(5, 3) + b, (1, 3), (3,))
    assert met["b0"] == met["a1"] == own("a1", 3)
    assert met.fields("aten.expand") == [(frozenset({1}), False), (frozenset({0}), False)]


def test_expanded_rows_are_as_many_as_what_they_are_joined_with_keeps() -> None:
    met = found(lambda a, b, c: torch.cat([a.reshape(2, 3), b.expand(2, 2)], 1).reshape(10) + c, (6,), (1, 2), (10,))
    assert met["c0"] == ["a0[0]", "a0[1]", "a0[2]", "b1[0]", "b1[1]", "a0[3]", "a0[4]", "a0[5]", "b1[0]", "b1[1]"]
    assert met.heads("c0") == [0] * 5 + [1] * 5
    assert met.heads("a0") == [0] * 3 + [1] * 3


def test_expanded_positions_hold_the_labels_that_they_meet() -> None:
    met = found(lambda a, b: a.expand(5, 3).sort(0)[0] + b, (1, 3), (5, 3))
    assert (met["b0"], met["b1"]) == (whole(5), own("a1", 3))


def test_an_expansion_that_broadcasting_makes_needless_holds_nothing() -> None:
    met = found(lambda a, b: b / a.expand_as(b) + a.expand(5, 3), (1, 3), (5, 3))
    assert (met["b0"], met["b1"]) == (own("b0", 5), own("a1", 3))
    assert found(lambda a, b: a.expand(5, 3) + b, (1, 3), (3,))["b0"] == own("a1", 3)


def test_channels_that_become_pixels_go_together() -> None:
    met = found(lambda a, b: F.pixel_shuffle(a, 2) + b, (1, 8, 1, 1), (2, 1, 1))
    assert met["a1"] == ["a1[0]"] * 4 + ["a1[4]"] * 4
    assert met["b0"] == ["a1[0]", "a1[4]"]


def test_pixels_that_become_channels_follow_their_channel() -> None:
    met = found(lambda a, b: F.pixel_unshuffle(a, 2) + b, (1, 2, 2, 2), (8, 1, 1))
    assert met["b0"] == ["a1[0]"] * 4 + ["a1[1]"] * 4
    assert met["a2"] == met["a3"] == whole(2)


def test_patches_cut_out_and_put_together_follow_their_channel() -> None:
    cut = found(lambda a, b: F.unfold(a, 2) + b, (1, 2, 4, 4), (8, 1))
    assert cut["b0"] == ["a1[0]"] * 4 + ["a1[1]"] * 4
    assert cut["a2"] == whole(4)
    joined = found(lambda a, b: F.fold(a, (3, 3), 2) + b, (1, 8, 4), (2, 1, 1))
    assert joined["b0"] == ["a1[0]", "a1[4]"]
    assert joined["a1"] == ["a1[0]"] * 4 + ["a1[4]"] * 4


def test_windows_hold_the_dimension_that_they_slide_over() -> None:
    met = found(lambda a: a.unfold(1, 2, 1).exp(), (3, 4))
    assert (met["a0"], met["a1"]) == (own("a0", 3), whole(4))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_reversed_dimension_has_its_labels_in_reverse(axis: int) -> None:
    met = found(lambda a, b: a.flip(axis) + b, (3, 3), (3,) if axis else (3, 1))
    assert met["b0"] == [f"a{axis}[{i}]" for i in (2, 1, 0)]


@pytest.mark.parametrize("function", [lambda a: a.rot90(1, [0, 1]).mT, lambda a: a.sort(1)[0], torch.triu])
def test_operators_that_look_at_the_order_hold_it(function: object) -> None:
    met = found(lambda a: function(a).exp(), (3, 4))  # type: ignore[operator]
    assert met["a1"] == whole(4)
    assert "order" in met.why("a1")


@pytest.mark.parametrize("function", [lambda a: a.roll(1, 1), lambda a: torch.fft.fft(a, dim=1).real, lambda a: F.avg_pool1d(a, 3, 1, 1)])
def test_what_is_mixed_along_a_dimension_may_go_and_what_comes_of_it_takes_the_labels_that_it_meets(function: object) -> None:
    met = found(lambda a, b: function(a) + b, (3, 4), (1, 4))  # type: ignore[operator]
    assert (met["a0"], met["a1"], met["b1"]) == (own("a0", 3), own("a1", 4), own("b1", 4))


@pytest.mark.parametrize(
    "function", [lambda a: a.roll(1), lambda a: a.diff(dim=1, prepend=torch.ones(3, 1)), lambda a: a.view(3, 2, 2).roll(1, 2)]
)
def test_what_is_mixed_together_with_more_stays(function: object) -> None:
    met = found(lambda a: function(a).exp(), (3, 4))  # type: ignore[operator]
    assert met["a1"] == whole(4)
