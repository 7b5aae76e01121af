"""Which layers a plan factorizes, at what ranks, and what a study after a plan knows."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.decompose import CP, SVD, ByEnergy, ByRatio, ByVBMF, Refusal, SpatialSVD, Tucker
from secateur.errors import ModelError, PlanError, SelectionError
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
    assert plan.edits == (Factorize("stem", "cp", (4,), {"separable": False, "seed": 3}, "sequential", False, True),)
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
        ({"rank": 2.5}, "whole number from 1 on"),
        ({"rank": {"stem": "vbmf"}}, "whole number from 1 on"),
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


def test_errors_count_as_the_outputs_depend_on_them_where_that_can_be_told(found: Study) -> None:
    plan = found.plan_decomposition(target=Target(macs=0.7), data=DATA)
    assert all(edit.weighted for edit in plan.factorizations)
    assert plan.settings["decomposition"]["weighted"] is True
    alike = found.plan_decomposition(target=Target(macs=0.7), data=DATA, weighted=False)
    assert not any(edit.weighted for edit in alike.factorizations)
    assert not any(edit.weighted for edit in found.plan_decomposition(target=Target(macs=0.7)).factorizations)


class Written(nn.Module):
    """Writes into what its layer's derivative needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).exp()
        y += 1
        return y


def test_a_model_that_cannot_be_differentiated_is_factorized_with_errors_alike() -> None:
    torch.manual_seed(0)
    written, x = study(Written(), torch.randn(2, 16)), torch.randn(32, 16)
    for wish in ({"target": Target(macs=0.8)}, {"rank": 4}):
        plan = written.plan_decomposition(data=x, **wish)
        assert not plan.factorizations[0].weighted
        assert any("cannot be differentiated" in note for note in plan.settings["notes"])
    with pytest.raises(ModelError, match="cannot be differentiated"):
        written.plan_decomposition(data=x, rank=4, weighted=True)


def test_layers_that_factors_are_the_wrong_tool_for_are_told() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(32))
        model[2].weight.copy_(torch.ones(32, 32))
    plan = study(model, torch.randn(2, 32)).plan_decomposition(target=Target(macs=0.8), data=torch.randn(256, 32), weighted=False)
    (told,) = [note for note in plan.settings["notes"] if "wrong tool" in note]
    assert "0 (7" in told
    assert "2 (" not in told


def test_slower_factors_are_refused_and_the_budget_goes_elsewhere(found: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(layer: nn.Module, edit: Factorize, calls: Any) -> Refusal | None:
        return Refusal("it is slower") if edit.layer == "body.0" else None

    monkeypatch.setattr(import_module("secateur.study.decomposition"), "slower", timed)
    assert "body.0" in ranks(found.plan_decomposition(target=Target(macs=0.95)))
    plan = found.plan_decomposition(target=Target(macs=0.95), timed=True)
    assert "body.0" not in ranks(plan)
    assert any("body.0: it is slower" in note for note in plan.settings["notes"])
    with pytest.raises(SelectionError, match=r"body\.0: it is slower"):
        found.plan_decomposition(rank=2, timed=True, strict=True)


def test_ranks_of_a_target_are_multiples_of_a_step(found: Study) -> None:
    plan = found.plan_decomposition(target=Target(macs=0.7), round_to=4)
    limits = {"stem": (3, 16), "body.0": (16, 24)}
    for edit in plan.factorizations:
        full = limits.get(edit.layer, edit.rank)
        assert all(rank % 4 == 0 or rank == limit for rank, limit in zip(edit.rank, full, strict=True)), edit
