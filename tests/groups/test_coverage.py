"""Every dimension of every weight is prunable or has a reason, and operators without a rule are listed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case, studied
from secateur.groups.coverage import Dimension
from secateur.study import study

WHOLE = [c for c in CASES if c.whole]
cases = pytest.mark.parametrize("case", CASES, ids=str)


@cases
def test_every_dimension_of_every_parameter_is_accounted_for(case: Case) -> None:
    found = {(d.tensor, d.dim): d.size for d in studied(case).coverage.dimensions}
    model = studied(case).model
    for name, parameter in model.named_parameters():
        assert {dim: found[name, dim] for dim in range(parameter.ndim)} == dict(enumerate(parameter.shape))


@cases
def test_what_is_not_prunable_has_a_reason(case: Case) -> None:
    for each in studied(case).coverage.dimensions:
        assert 0 <= each.prunable <= each.size
        assert (each.reason is None) == (each.prunable == each.size), each
        if each.reason:
            assert "not read by any operator" not in each.reason, each


@cases
def test_groups_say_prunable_or_why_not(case: Case) -> None:
    names = [g.name for g in studied(case).groups]
    assert len(set(names)) == len(names)
    for group in studied(case).groups:
        assert group.prunable or len(str(group.reason)) > 10
        assert group.size == len(group.cells)
        assert group.members


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_channels_at_an_operator_that_needs_all_of_them_stay_whole_with_the_reason(case: Case) -> None:
    groups = {g.name: g for g in studied(case).groups}
    assert case.whole
    assert case.whole in str(groups["second"].reason)
    assert groups["first"].prunable
    assert groups["third"].prunable


def test_operators_without_a_rule_are_listed() -> None:
    case = next(c for c in CASES if c.name == "unknown_operator")
    assert list(studied(case).coverage.unknown.values()) == ["secateur_tests.mixed.default"]
    assert list(studied(case).layers.unknown.values()) == ["secateur_tests.mixed.default"]


@pytest.mark.parametrize("case", [c for c in CASES if c.whole is None], ids=str)
def test_other_models_use_no_operator_without_a_rule(case: Case) -> None:
    assert not studied(case).coverage.unknown


@cases
def test_what_a_person_reads_fits_the_groups(case: Case) -> None:
    layers = studied(case).layers
    assert [row.name for row in layers] == [g.name for g in studied(case).groups]
    assert 0 < layers.prunable_parameters <= 1
    assert all(0 < row.parameter_share <= 1 and 0 <= row.macs_share <= 1 for row in layers)
    assert all(row.name in str(layers) for row in layers)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_coverage_by_hand() -> None:
    found = study(Plain(), torch.randn(2, 3)).coverage
    assert [d for d in found.dimensions if d.reason is None] == [
        Dimension("first.weight", 0, 4, 4, None),
        Dimension("first.bias", 0, 4, 4, None),
        Dimension("second.weight", 1, 4, 4, None),
    ]
    assert {(d.tensor, d.dim): d.prunable for d in found.dimensions if d.reason} == {("first.weight", 1): 0, ("second.weight", 0): 0}
    # 12 + 4 of first and 8 of second lie at the four channels: all of the parameters
    assert found.prunable_share({"first.weight": 12, "first.bias": 4, "second.weight": 8}) == 1.0
    assert found.to_json()["unknown"] == {}


class Looped(nn.Module):
    """A layer that reads and writes the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.inner(x))


def test_a_weight_with_channels_on_both_sides_counts_once() -> None:
    row = study(Looped(), torch.randn(2, 2)).layers["add_tensor"]
    # first 16 + 8, inner 64 + 8, last 16; only the bias of last lies elsewhere
    assert (row.parameters, row.parameter_share, row.macs_share) == (112, 112 / 114, 1.0)


class Spare(Looped):
    """A layer that forward never calls, and one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.alias = nn.Linear(3, 3), self.last


def test_a_parameter_that_is_never_read_is_listed() -> None:
    found = study(Spare(), torch.randn(2, 2)).coverage.dimensions
    assert [d for d in found if "spare" in d.tensor] == [
        Dimension("spare.weight", 0, 3, 0, "never read by forward"),
        Dimension("spare.weight", 1, 3, 0, "never read by forward"),
        Dimension("spare.bias", 0, 3, 0, "never read by forward"),
    ]
    assert not [d for d in found if "alias" in d.tensor]


def test_what_a_stored_weight_is_computed_from_says_so() -> None:
    found = study(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)), torch.randn(2, 3)).coverage
    reasons = {d.tensor: d.reason for d in found.dimensions if "original" in d.tensor}
    assert reasons == {f"0.parametrizations.weight.original{i}": "0.weight is computed from it and stored in its place" for i in (0, 1)}


class Picked(nn.Module):
    """A number for each head; one channel of the first head is used by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.slope = nn.Linear(3, 8), nn.Linear(8, 2), nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x).unflatten(-1, (4, 2)) * self.slope).flatten(-2)
        return self.last(x) + x[..., :1]


def test_a_position_for_a_head_stays_with_the_reason_of_the_head() -> None:
    found = next(d for d in study(Picked(), torch.randn(2, 3)).coverage.dimensions if (d.tensor, d.dim) == ("slope", 0))
    assert (found.size, found.prunable) == (4, 3)
    assert str(found.reason).startswith("one position for each head or group, and these stay: a single position of it is picked")


class Blocks(nn.Module):
    """Residual blocks of unlike widths behind a stem, and a plain layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1), nn.Linear(12, 3)
        self.inner = nn.ModuleList(nn.Conv2d(8, width, kernel) for width, kernel in ((6, 1), (10, 3)))
        self.outer = nn.ModuleList(nn.Conv2d(width, 8, 1) for width in (6, 10))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            y = y + torch.nn.functional.adaptive_avg_pool2d(outer(inner(y).relu()), 6)
        return self.head(self.last(y).relu().mean((2, 3)))


def test_signatures_are_those_of_the_topology_not_of_the_sizes() -> None:
    found = {g.name: g.signature for g in study(Blocks(), torch.randn(1, 3, 8, 8)).groups}
    stream = next(name for name in found if "add" in name)
    assert found["inner.0"] == found["inner.1"]
    assert len({found["inner.0"], found["last"], found[stream], found["head"]}) == 4


def test_a_complex_parameter_counts() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
            self.factors = nn.Parameter(torch.randn(8, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return self.last((self.first(x) * self.factors).real)

    dimensions = study(Spectral(), torch.randn(3, 4)).coverage.dimensions
    assert [(d.size, d.prunable, d.reason) for d in dimensions if d.tensor == "factors"] == [(8, 8, None)]
