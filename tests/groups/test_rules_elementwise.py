"""Labels that meet element by element go together, by broadcasting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groups.by_hand import found, own, whole


@pytest.mark.parametrize(
    "function",
    [torch.add, torch.mul, torch.maximum, torch.atan2, lambda a, b: torch.where(a > 0, a, b), lambda a, b: a.masked_fill(b > 0, 0.0)],
    ids=["add", "mul", "maximum", "atan2", "where", "masked_fill"],
)
def test_positions_that_meet_go_together(function: object) -> None:
    met = found(function, (4,), (4,))  # type: ignore[arg-type]
    assert met["a0"] == met["b0"] == own("a0", 4)


def test_broadcasting_aligns_the_last_dimensions() -> None:
    met = found(torch.add, (3, 4), (4,))
    assert met["a0"] == own("a0", 3)
    assert met["b0"] == met["a1"] == own("a1", 4)


def test_an_outer_product_joins_nothing() -> None:
    met = found(torch.mul, (3, 1), (4,))
    assert (met["a0"], met["b0"]) == (own("a0", 3), own("b0", 4))


@pytest.mark.parametrize(
    "function", [torch.relu, torch.exp, torch.neg, F.gelu, F.softplus, lambda a: a.clamp(-1, 1), lambda a: a.double(), lambda a: a.clone()]
)
def test_functions_of_one_operand_pass_labels(function: object) -> None:
    met = found(lambda a, b: function(a) + b, (3, 4), (3, 4))  # type: ignore[operator]
    assert (met["b0"], met["b1"]) == (own("a0", 3), own("a1", 4))


def test_values_that_no_weight_makes_hold_what_they_meet() -> None:
    met = found(lambda a: a + torch.rand(4), (3, 4))
    assert (met["a0"], met["a1"]) == (own("a0", 3), whole(4))
    assert met.why("a1") == "meets values that are not made by prunable weights"


def test_a_number_and_a_single_value_hold_nothing() -> None:
    assert found(lambda a: 2 * a + torch.ones(1), (4,))["a0"] == own("a0", 4)


@pytest.mark.parametrize("name", ["zeros_like", "ones_like", "full_like"])
def test_tensors_made_like_another_have_its_labels(name: str) -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return getattr(torch, name)(a, **({"fill_value": 2.0} if name == "full_like" else {})) * 1 + b

    assert found(function, (4,), (4,))["b0"] == own("a0", 4)


@pytest.mark.parametrize("name", ["rand_like", "randn_like", "bernoulli"])
def test_what_random_numbers_are_drawn_for_stays(name: str) -> None:
    met = found(lambda a, b: getattr(torch, name)(a.sigmoid()) * b, (4,), (4,))
    assert met["a0"] == whole(4)
    assert "random numbers" in met.why("a0")


@pytest.mark.parametrize(
    "make", [lambda a: a.new_zeros(4), lambda a: a.new_ones(4), lambda a: torch.arange(a.shape[0]), lambda a: torch.zeros(4)]
)
def test_tensors_made_of_numbers_alone_follow_what_they_meet(make: object) -> None:
    assert found(lambda a: a.sum() + make(a).sum(), (4,))["a0"] == own("a0", 4)  # type: ignore[operator]
    assert found(lambda a, b: a + make(a) * b, (4,), (4,))["b0"] == own("a0", 4)  # type: ignore[operator]


def test_a_table_of_positions_follows_channels_and_stays_along_what_has_no_labels() -> None:
    met = found(lambda a, b: a * torch.rand(3, 1) + torch.outer(torch.arange(3.0), torch.arange(4.0)) + b, (4,), (4,))
    assert met["b0"] == met["a0"] == own("a0", 4)
    assert met.fields("aten.add") == [(frozenset({1}), False)]


def test_a_table_that_is_read_whole_stays_and_holds_what_it_meets() -> None:
    met = found(lambda a: a + torch.arange(4.0).reshape(2, 2).exp().view(4) + torch.rand(4), (4,))
    assert met["a0"] == whole(4)
    met = found(lambda a, b: a + b.new_ones(3, 2).mul(b.sum()).reshape(6), (6,), (2,))
    assert met["a0"] == whole(6)


def test_the_halves_of_a_gate_go_together() -> None:
    met = found(lambda a: F.glu(a, 1), (2, 6))
    assert met["a0"] == own("a0", 2)
    assert met["a1"] == own("a1", 3) * 2
    assert found(lambda a: F.glu(a, 0), (2, 6))["a1"] == own("a1", 6)


def test_a_slope_for_each_channel_goes_with_it() -> None:
    met = found(F.prelu, (2, 4, 3), (4,))
    assert met["b0"] == met["a1"] == own("a1", 4)
    assert (met["a0"], met["a2"]) == (own("a0", 2), own("a2", 3))


def test_one_slope_for_all_channels_joins_nothing() -> None:
    assert found(F.prelu, (2, 4), (1,))["a1"] == own("a1", 4)


def test_what_is_the_same_in_every_row_but_needs_all_rows_goes_from_all_of_them() -> None:
    met = found(lambda a, b: a.reshape(2, 3) * (b * torch.arange(1.0, 3.0)[:, None]), (6,), (3,))
    assert met["a0"] == own("a0", 3) * 2
    assert met["b0"] == own("a0", 3)


def test_what_needs_all_of_a_row_lets_rows_go() -> None:
    met = found(lambda a, b: a.reshape(2, 3) * (b * torch.rand(3)), (6,), (2, 1))
    assert met["a0"] == whole(6)
    assert [(g.kind, g.size) for g in met.study.groups if g.prunable] == [("blocks", 2)]
    assert met.heads("a0") == [0, 0, 0, 1, 1, 1]
