"""Ranks for a target of latency, on clocks of our own."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from secateur.capture import Capture
from secateur.decompose import Call, ErrorCurve, LayerSpec
from secateur.decompose.spec import read_spec
from secateur.errors import SelectionError
from secateur.measure import LayerTimes, OnnxTimer, Operation
from secateur.measure.layer_times import Repeats
from secateur.measure.operation import Shaped
from secateur.rewrite import draft_with_factors
from secateur.study import Study, study
from secateur.study.curves import Curve
from secateur.study.rank_latency import MOST, layer_times, thinned
from secateur.target import Stopwatch, Target
from secateur.target.factors import factor_operations, own_nodes
from secateur.target.latency import Timed
from target.timers import Elements, Stairs, elements, on_own_clocks


def deep(width: int = 32, depth: int = 3) -> Study:
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    return study(nn.Sequential(nn.Conv2d(3, width, 3), *layers, nn.Flatten(), nn.Linear(width * 4, 20)).eval(), torch.randn(1, 3, 4, 4))


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Stairs:
    """Operators take as long as they have elements, models as long as they have parameters."""
    return on_own_clocks(monkeypatch, Stairs(step=0.001))


@pytest.mark.parametrize("goal", [0.5, 0.8])
def test_ranks_are_predicted_measured_and_told(goal: float, clocks: Stairs) -> None:
    found = deep()
    plan = found.plan_decomposition(target=Target(latency=goal))
    result = sc.apply(found, plan)
    left = result.after.parameters / result.before.parameters
    assert goal - 0.1 < left <= goal
    told = plan.settings["latency"]
    assert told["measured_ms"]["compressed"] / told["measured_ms"]["dense"] == pytest.approx(left, abs=2e-3)
    predicted = told["predicted_ms"]["compressed"] / told["predicted_ms"]["dense"]
    note = next(note for note in plan.settings["notes"] if note.startswith(f"target {goal:.1%} of the dense model's latency"))
    assert f"predicted {predicted:.1%} by the times of its layers, measured " in note
    assert sc.Plan.from_json(plan.to_json()) == plan


def test_what_is_predicted_is_the_time_of_the_smaller_model(clocks: Stairs) -> None:
    found = deep()
    plan = found.plan_decomposition(target=Target(latency=0.6))
    small = study(sc.apply(found, plan).model, found.capture.args)
    assert plan.settings["latency"]["predicted_ms"]["compressed"] == pytest.approx(small.predicted_latency().dense_ms)
    assert plan.settings["latency"]["predicted_ms"]["dense"] == pytest.approx(found.predicted_latency().dense_ms)


def test_ranks_are_multiples_that_processors_like_unless_others_are_asked_for(clocks: Stairs) -> None:
    found = deep()
    ranks = [edit.rank for edit in found.plan_decomposition(target=Target(latency=0.7)).factorizations]
    assert ranks
    assert all(part % 4 == 0 or part == 3 for rank in ranks for part in rank)
    threes = [edit.rank for edit in found.plan_decomposition(target=Target(latency=0.7), round_to=3).factorizations]
    assert all(part % 3 == 0 or part in (3, 20, 32) for rank in threes for part in rank)
    assert threes != ranks


def test_factors_that_are_predicted_slower_are_no_choice(clocks: Stairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts calls alone, two operators are never faster than one."""
    monkeypatch.setattr(Elements, "__call__", lambda self, operation: 1.0)
    with pytest.raises(SelectionError, match=r"latency=0.7\) was not reached: no factors are predicted to be faster"):
        deep().plan_decomposition(target=Target(latency=0.7))


def test_a_layer_whose_factors_are_slower_stays_and_says_so(clocks: Stairs, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Elements.__call__

    def slow_beside_matrices(self: Elements, operation: Operation) -> float | None:
        return 1e3 if operation.key.startswith("aten.linear") and "[20,128]" not in operation.key else count(self, operation)

    monkeypatch.setattr(Elements, "__call__", slow_beside_matrices)
    plan = deep().plan_decomposition(target=Target(latency=0.7))
    assert "8" not in {edit.layer for edit in plan.factorizations}
    assert any(note == "not factorized: 8: no factors are predicted to be faster" for note in plan.settings["notes"])


def test_a_latency_out_of_reach_says_what_was_measured(clocks: Stairs) -> None:
    with pytest.raises(SelectionError, match=r"latency=0.01\) was not reached: the model that was timed took \d"):
        deep().plan_decomposition(target=Target(latency=0.01))


def test_what_measures_too_slow_is_planned_for_again(clocks: Stairs) -> None:
    clocks.truth, clocks.truth_always = (lambda share: 0.2 + 0.8 * share), True
    told = deep().plan_decomposition(target=Target(latency=0.7)).settings["latency"]
    assert told["tried"] > 1
    assert told["measured_ms"]["compressed"] <= 7.0
    assert told["predicted_ms"]["compressed"] / told["predicted_ms"]["dense"] < 0.7


def test_a_latency_is_of_the_dense_model_and_ranks_are_not_given(clocks: Stairs) -> None:
    found = deep()
    with pytest.raises(SelectionError, match="beside the dense model"):
        found.after(found.plan(ratio=0.5)).plan_decomposition(target=Target(latency=0.5))
    with pytest.raises(SelectionError, match="not both"):
        found.plan_decomposition(target=Target(latency=0.5), rank=4)


class Layers(nn.Module):
    """One layer of each kind, the second of which pads by another operator, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False)
        self.same = nn.Conv2d(16, 16, (3, 5), padding="same", groups=2)
        self.up = nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1)
        self.line = nn.Conv1d(16, 16, 3, dilation=2)
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(self.up(self.same(self.second(self.first(x)))).flatten(2)).mT
        return self.linear(self.linear(x))


def test_operators_of_factors_are_those_that_the_factorized_model_runs(clocks: Stairs) -> None:
    found = study(Layers().eval(), torch.randn(2, 8, 12, 12))
    methods = {"first": sc.SpatialSVD(), "second": sc.Tucker(), "same": sc.CP(), "up": sc.Tucker(), "line": sc.Tucker(), "linear": sc.SVD()}
    ranks = {name: (4,) * (2 if isinstance(method, sc.Tucker) else 1) for name, method in methods.items()}
    points: dict[Any, Any] = {found.decomposable[name]: [(method, ranks[name]), None] for name, method in methods.items()}
    predicted = found.predicted_latency()
    timer = predicted.times.timer
    assert isinstance(timer, Elements)
    timer.runs = True
    times = layer_times(found.model, points, predicted)
    assert timer.failed == []
    for name, method in methods.items():
        factors, layer = times[name]
        assert factors is not None
        assert layer is not None
        if name != "second":  # what a layer pads by itself is narrower with factors, and counts as it was
            small = sc.apply(found, found.plan_decomposition(method, rank={name: ranks[name]}, accept_dearer=True)).model
            other = study(small, found.capture.args).predicted_latency()
            assert other.dense_ms - predicted.dense_ms == pytest.approx(factors - layer), name


def test_factors_of_a_layer_that_pads_by_itself_run_on_what_is_padded() -> None:
    found = study(Layers().eval(), torch.randn(2, 8, 12, 12))
    spec = read_spec(found.model.get_submodule("second"))
    assert isinstance(spec, LayerSpec)
    calls = found.decomposable["second"].calls
    reduce, core, expand = factor_operations(sc.Tucker().layers(spec, (4, 8)).values(), calls, torch.float32)
    assert [each[0].numbers[:4] for each in (reduce, core, expand)] == [(2, 16, 6, 6), (2, 4, 8, 8), (2, 8, 6, 6)]


def test_the_operator_of_a_layer_is_found_past_views() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 16))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.weight.t())

    found = study(nn.Sequential(Turned()).eval(), torch.randn(3, 12))
    assert [str(node.target) for node in own_nodes(found.capture, ["0"])] == ["aten.linear.default"]


def test_few_points_of_a_curve_are_timed_and_none_that_loses_more_for_more() -> None:
    generator = np.random.default_rng(0)
    costs = np.array([*generator.integers(1, 900, 100), 1000])
    errors = np.array([*(1 - costs[:-1] / 1000 + np.where(np.arange(100) % 2, 0.5, 0.0)), 0.0])  # each second one loses more for its cost
    ranks = (*((number,) for number in range(100)), None)
    points = (*((sc.SVD(), (number,)) for number in range(100)), None)
    found = thinned(Curve(points, ErrorCurve(ranks, costs, errors), 0.0))
    assert MOST - 2 <= len(found.points) <= MOST + 1
    assert found.points[-1] is None
    assert found.errors.ranks[-1] is None
    rows = sorted(zip(found.errors.costs, found.errors.errors, strict=True))
    assert all(cheap[1] > dear[1] for cheap, dear in pairwise(rows))
    assert errors.min() in found.errors.errors
    assert costs.min() == rows[0][0]


def test_a_class_that_cannot_hold_factors_is_timed_as_a_graph() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if self.inner.weight.shape == (16, 16) else x

    found = study(Reading().eval(), torch.randn(3, 16))
    edits = found.plan_decomposition(sc.SVD(), rank={"inner": 4}).factorizations
    small = draft_with_factors(found.cut_of({}), edits)
    assert not isinstance(small, Reading)
    assert sorted(tuple(p.shape) for p in small.parameters()) == [(4, 16), (16,), (16, 4)]


def test_a_latency_may_be_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)

    def once(self: Stopwatch, source: Capture, small: nn.Module, **_: Any) -> Timed:
        """Models run, but what is told of the smaller one is that it takes half of the time."""
        found = self.compare({"dense": source.model, "compressed": small}, source.args, source.kwargs, warmup=1, repeats=2)
        return Timed(found["dense"], replace(found["compressed"], median_ms=found["dense"].median_ms / 2))

    monkeypatch.setattr(Stopwatch, "beside", once)
    monkeypatch.setattr(import_module("secateur.target.latency"), "NEAR", 0.99)  # whatever measures within the target will do
    monkeypatch.setattr(OnnxTimer, "__call__", lambda self, operation: timed.append(operation) or 1e-3 * elements(operation))
    monkeypatch.setattr(OnnxTimer, "prepared", lambda self, operations: self)
    timed: list[Operation] = []
    plan = deep(depth=1).plan_decomposition(target=Target(latency=0.9, runtime="onnx"))
    assert plan.factorizations
    assert plan.settings["latency"]["conditions"]["runtime"].startswith("onnxruntime ")
    assert {operation.key.split("(")[0] for operation in timed} >= {"aten.conv2d.default", "aten.linear.default"}


def test_operators_of_factors_can_be_exported() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    spec = LayerSpec(8, 8, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0), bias=True)
    found = factor_operations(sc.Tucker().layers(spec, (4, 4)).values(), [Call(1, (6, 6))], torch.float32)
    stored = [[leaf.stored for leaf in each[0].leaves if isinstance(leaf, Shaped)] for each in found]
    assert stored == [[False, True], [False, True], [False, True, True]]
    times = LayerTimes(OnnxTimer(repeats=Repeats(repeats=3)), folder=None)
    assert None not in times([each for operations in found for each in operations])
