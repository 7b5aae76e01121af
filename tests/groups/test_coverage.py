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
    folded = {n.removesuffix("_folded") for n in studied(case).weights}
    for name, parameter in model.named_parameters():
        if name in studied(case).weights:
            assert {dim: found[name, dim] for dim in range(parameter.ndim)} == dict(enumerate(parameter.shape))
        else:
            assert name.rpartition(".")[0] in {n.rpartition(".")[0] for n in folded}, name


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


@pytest.mark.parametrize(("name", "operator"), [("unknown_operator", "secateur_tests.mixed.default"), ("recurrent", "aten.lstm.input")])
def test_operators_without_a_rule_are_listed(name: str, operator: str) -> None:
    case = next(c for c in CASES if c.name == name)
    assert list(studied(case).coverage.unknown.values()) == [operator]
    assert list(studied(case).layers.unknown.values()) == [operator]


@pytest.mark.parametrize("case", [c for c in CASES if c.whole is None], ids=str)
def test_other_models_use_no_operator_without_a_rule(case: Case) -> None:
    assert not studied(case).coverage.unknown


@cases
def test_what_a_person_reads_fits_the_groups(case: Case) -> None:
    layers = studied(case).layers
    assert [row.name for row in layers] == [g.name for g in studied(case).groups]
    assert 0 < layers.prunable_parameters <= 1
    assert all(row.parameter_share > 0 for row in layers)
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
