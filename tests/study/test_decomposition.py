"""Which layers a plan factorizes, at what ranks, and what a study after a plan knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.decompose import CP, SVD, ByEnergy, ByRatio, ByVBMF, SpatialSVD, Tucker
from secateur.errors import PlanError, SelectionError
from secateur.plan import Factorize, Plan
from secateur.score import Random
from secateur.study import Study, study
from secateur.target import Target


class Net(nn.Module):
    """Kernels, a matrix, a depthwise layer, one that is shared and one that is too small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=24), nn.ReLU())
        self.shared = nn.Linear(24, 24)
        self.again = self.shared
        self.tiny = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.stem(x))).mean((2, 3))
        return self.tiny(torch.relu(self.again(torch.relu(self.shared(x)))))


@pytest.fixture(scope="module")
def found() -> Study:
    torch.manual_seed(0)
    return study(Net().eval(), torch.randn(2, 3, 8, 8))


DATA = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))]


def ranks(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {edit.layer: edit.rank for edit in plan.factorizations}


@pytest.mark.parametrize(
    ("method", "rank", "wanted"),
    [
        ((Tucker(), SVD()), 2, {"stem": (2, 2), "body.0": (2, 2), "shared": (2,)}),
        (SVD(), 2, {"shared": (2,)}),
        ((Tucker(), SVD()), {"again": 5}, {"shared": (5,)}),
        ((Tucker(), SVD()), {"body.*": (4, 6), "stem": (3, 4)}, {"stem": (3, 4), "body.0": (4, 6)}),
        (SVD(), ByRatio(0.5), {"shared": (5,)}),
        (SpatialSVD(), {"*": ByEnergy(1e-6)}, {"stem": (1,), "body.0": (1,)}),
        (CP(separable=False), {"stem": 4}, {"stem": (4,)}),
    ],
)
def test_ranks_by_hand_and_by_rule(found: Study, method: Any, rank: Any, wanted: dict[str, tuple[int, ...]]) -> None:
    assert ranks(found.plan_decomposition(method, rank=rank)) == wanted


def test_settings_of_the_method_travel_with_the_edit(found: Study) -> None:
    plan = found.plan_decomposition(CP(separable=False, seed=3), rank={"stem": 4}, data=DATA, fit="sequential", correct_bias=False)
    assert plan.edits == (Factorize("stem", "cp", (4,), {"separable": False, "seed": 3}, "sequential", False),)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.needs_data


def test_layers_that_stay_are_noted_with_the_reason(found: Study) -> None:
    notes = "\n".join(found.plan_decomposition(rank=2).settings["notes"])
    assert "body.2: it is depthwise" in notes
    assert "tiny: " in notes
    assert "VBMF finds nothing" in "\n".join(found.plan_decomposition().settings["notes"])


def test_a_layer_that_is_named_must_come_out_cheaper(found: Study) -> None:
    with pytest.raises(SelectionError, match=r"shared: rank \(20,\) makes it dearer"):
        found.plan_decomposition(rank={"shared": 20})
    assert ranks(found.plan_decomposition(rank={"shar*": 20})) == {}
    assert ranks(found.plan_decomposition(rank={"shared": 20}, accept_dearer=True)) == {"shared": (20,)}
    with pytest.raises(SelectionError, match=r"body\.2: it is depthwise"):
        found.plan_decomposition(rank={"body.2": 1})


def test_vbmf_finds_ranks_that_are_there() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(64, 5) @ torch.randn(5, 64) + 0.1 * torch.randn(64, 64))
    found = study(nn.Sequential(layer), torch.randn(1, 64))
    assert ranks(found.plan_decomposition()) == {"0": (5,)}
    assert ranks(found.plan_decomposition(rank=ByVBMF(calibration=0.2))) == {"0": (16,)}


@pytest.mark.parametrize("exclude", [["body"], ["body.*"], [nn.Conv2d], [lambda name, _: name in ("stem", "body.0")]])
def test_layers_that_are_left_alone(found: Study, exclude: list[Any]) -> None:
    assert "body.0" not in ranks(found.plan_decomposition(rank=2, exclude=exclude))
    assert "shared" in ranks(found.plan_decomposition(rank=2, exclude=exclude))


@pytest.mark.parametrize("target", [Target(macs=0.5), Target(parameters=0.6), Target(macs=0.9)])
@pytest.mark.parametrize("data", [None, DATA])
def test_a_target_is_met_and_not_far_missed(found: Study, target: Target, data: Any) -> None:
    plan = found.plan_decomposition((Tucker(), SpatialSVD(), SVD()), target=target, data=data)
    after = found.after(plan, data=data)
    left = after.macs.total / found.macs.total if target.macs else after.parameters / found.parameters
    assert target.fraction - 0.06 <= left <= target.fraction
    assert all(edit.fit == ("weights" if data is None else "inputs") for edit in plan.factorizations)


def test_more_of_a_budget_never_loses_more(found: Study) -> None:
    plans = [found.plan_decomposition(SpatialSVD(), target=Target(macs=share), round_to=2) for share in (0.4, 0.6, 0.8)]
    assert all(rank % 2 == 0 for plan in plans for (rank,) in ranks(plan).values())
    totals = [sum(rank for (rank,) in ranks(plan).values()) for plan in plans]
    assert totals == sorted(totals)


def test_pruning_then_factorizing_is_one_plan_for_the_dense_model(found: Study) -> None:
    pruned = found.plan(ratio=0.5)
    inner = found.after(pruned)
    plan = inner.plan_decomposition(target=Target(macs=0.2))
    assert plan.fingerprint == found.fingerprint
    assert [len(stage) for stage in plan.stages] == [len(pruned.edits), len(plan.factorizations)]
    assert found.after(plan).macs.total <= 0.2 * found.macs.total < inner.macs.total
    assert plan.settings["criterion"] == pruned.settings["criterion"]
    with pytest.raises(SelectionError, match="reached already"):
        inner.plan_decomposition(target=Target(macs=0.9))
    with pytest.raises(PlanError, match="another model"):
        inner.cut(plan)


def test_factorizing_then_pruning_is_one_plan_for_the_dense_model(found: Study) -> None:
    factors = found.plan_decomposition(rank=4)
    plan = found.after(factors).plan(ratio=0.5)
    assert plan.edits[: len(factors.edits)] == factors.edits
    assert {edit.size for edit in plan.prunes} >= {4}
    assert found.after(plan).macs.total < found.after(factors).macs.total


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"rank": 2, "target": Target(macs=0.5)}, "not both"),
        ({"rank": {"stern": 2}}, "Did you mean 'stem'"),
        ({"rank": 2, "exclude": ["nowhere"]}, "No layer to leave alone"),
        ({"rank": 2, "fit": "inputs"}, "need calibration data"),
        ({"rank": 2, "data": []}, "no samples"),
        ({"method": (), "rank": 2}, "at least one method"),
        ({"target": Target(macs=0.01)}, "cannot be reached"),
    ],
)
def test_what_cannot_be_is_refused(found: Study, wish: dict[str, Any], said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        found.plan_decomposition(**wish)


def test_the_seed_and_the_data_are_told(found: Study) -> None:
    assert found.plan(Random(seed=5), ratio=0.5).settings["seed"] == 5
    known = found.plan_decomposition(rank=2, data=DATA).settings["decomposition"]["calibration"]
    assert known == found.plan_decomposition(rank=2, data=[*DATA]).settings["decomposition"]["calibration"]
    assert known != found.plan_decomposition(rank=2, data=[DATA[0] + 1]).settings["decomposition"]["calibration"]
