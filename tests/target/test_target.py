"""A target is met, closely, and latency is measured on a clock of our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, studied
from secateur.allocate import Allocation, Allocator, GlobalRank, Isomorphic, Knapsack, Options
from secateur.errors import SelectionError
from secateur.measure import LayerTimes, OnnxTimer, weight_bytes
from secateur.pipeline import apply
from secateur.plan import Plan
from secateur.rewrite import draft
from secateur.score import GroupNorm, Random
from secateur.study import Study, study
from secateur.target import Candidates, Forecast, Stopwatch, Target, reach, remaining
from secateur.target.latency import LatencySearch, Timed
from target.timers import Stairs, latency, on_own_clocks

BY_NAME = {case.name: case for case in CASES}


def deep(width: int = 16, depth: int = 10) -> Study:
    """Many layers of one width: at one ratio for all, each step takes a channel from every one of them."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    return study(nn.Sequential(nn.Conv2d(3, width, 3), *layers, nn.Conv2d(width, 4, 1)).eval(), torch.randn(1, 3, 10, 10))


@pytest.mark.parametrize("given", [{}, {"macs": 0.5, "latency": 0.5}, {"macs": 0.0}, {"parameters": 1.0}, {"latency": -0.5}])
def test_a_target_is_one_fraction(given: dict[str, float]) -> None:
    with pytest.raises(SelectionError, match="one of macs, parameters, bytes and latency"):
        Target(**given)


@pytest.mark.parametrize("allocator", [None, Knapsack("bytes")], ids=str)
def test_bytes_count_as_they_are_stored(allocator: Allocator | None) -> None:
    """The second layer's weights take twice as many bytes as the first one's, and a batch norm has buffers."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(40, 40), nn.BatchNorm1d(40), nn.Linear(40, 40).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.norm(torch.relu(self.first(x))).double())

    torch.manual_seed(0)
    found = study(Mixed().eval(), torch.randn(3, 40))
    plan = found.plan(target=Target(bytes=0.5), allocator=allocator, options=Options(layer_norm="none"))
    small = apply(found, plan).model
    left = weight_bytes(small) / weight_bytes(found.model)
    assert 0.47 < left <= 0.5
    assert remaining(Target(bytes=0.5), found.cut(plan), found.macs) == pytest.approx(left, abs=1e-3)
    assert left != pytest.approx(remaining(Target(parameters=0.5), found.cut(plan), found.macs), abs=1e-4)


def test_a_runtime_is_one_of_two_and_goes_with_a_latency() -> None:
    assert repr(Target(latency=0.5, runtime="onnx")) == "Target(latency=0.5, runtime='onnx')"
    with pytest.raises(SelectionError, match="matters for a latency alone"):
        Target(macs=0.5, runtime="onnx")
    with pytest.raises(SelectionError, match="must be one of torch, onnx"):
        Target(latency=0.5, runtime="tvm")  # type: ignore[arg-type]


def test_a_target_says_what_it_is_of() -> None:
    assert (repr(Target(latency=0.25)), Target(latency=0.25).quantity, Target(latency=0.25).fraction) == (
        "Target(latency=0.25)",
        "latency",
        0.25,
    )


@pytest.mark.parametrize("allocator", [None, GlobalRank(), Isomorphic()], ids=str)
@pytest.mark.parametrize("target", [Target(macs=0.3), Target(macs=0.75), Target(parameters=0.5)], ids=repr)
def test_a_counted_target_is_met_within_one_percent(target: Target, allocator: Allocator | None) -> None:
    found = deep()
    left = remaining(target, found.cut(found.plan(target=target, allocator=allocator)), found.macs)
    assert target.fraction - 0.01 <= left <= target.fraction


def wide(*widths: int) -> Study:
    """A group of each width, one after the other."""
    torch.manual_seed(0)
    sizes = (3, *widths)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return study(nn.Sequential(*layers, nn.Conv2d(sizes[-1], 4, 1)).eval(), torch.randn(1, 3, 8, 8))


def test_widths_are_multiples_that_processors_like_where_none_are_given() -> None:
    found, options = wide(64, 96, 16, 64, 6), Options(layer_norm="none", step_size=None)
    plan = found.plan(GroupNorm(), target=Target(macs=0.55), allocator=GlobalRank(), options=options)
    kept = {edit.group: edit.size - len(edit.remove) for edit in plan.prunes}
    assert kept.keys() >= {"0", "2", "6"}
    assert [kept.get(name, 0) % step for name, step in {"0": 8, "2": 8, "4": 4, "6": 8}.items()] == [0, 0, 0, 0]
    assert 0.54 <= remaining(Target(macs=0.55), found.cut(plan), found.macs) <= 0.55
    assert "step_size=None" in plan.settings["options"]


def test_a_target_that_such_multiples_miss_takes_any_widths() -> None:
    found, options = wide(32), Options(step_size=None)
    plan = found.plan(target=Target(macs=0.7), options=options)
    assert plan.ratios["0"] == 10 / 32
    assert plan.settings["notes"][-1] == "widths are no multiples of 8 or 4, since with such ones the target is missed by 7.5%"
    assert "step_size=1" in plan.settings["options"]
    given = found.plan(target=Target(macs=0.7), options=Options(step_size=8))
    assert given.ratios["0"] == 0.5


def test_a_target_that_such_multiples_cannot_reach_takes_any_widths() -> None:
    found = wide(32)
    assert found.plan(target=Target(macs=0.1), options=Options(step_size=None)).ratios["0"] == 29 / 32
    with pytest.raises(SelectionError, match="cannot be reached"):
        found.plan(target=Target(macs=0.1), options=Options(step_size=8))


def test_a_step_that_leads_far_past_the_target_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 64, 3, padding=1), nn.GroupNorm(32, 64), nn.ReLU())  # one channel of every group at a time: half of them
    rest = [layer for _ in range(4) for layer in (nn.LazyConv2d(32, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*stem, *rest, nn.LazyConv2d(4, 1))
    model(torch.randn(1, 3, 8, 8))
    found = study(model.eval(), torch.randn(1, 3, 8, 8))
    scores = {each.name: torch.full((each.size,), 0.5) if each.size == 64 else torch.linspace(0, 1, each.size) for each in found.groups}

    def left() -> float:
        plan = found.plan(scores=scores, allocator=GlobalRank(), target=Target(macs=0.65), options=Options(layer_norm="none"))
        return remaining(Target(macs=0.65), found.cut(plan), found.macs)

    assert 0.64 <= left() <= 0.65
    monkeypatch.setattr("secateur.target.search.HELD", 0)
    assert left() < 0.636


def test_a_larger_budget_never_leaves_less() -> None:
    found = deep(depth=4)
    left = [remaining(t, found.cut(found.plan(target=t)), found.macs) for t in (Target(macs=tenths / 10) for tenths in range(2, 9))]
    assert left == sorted(left)


@pytest.mark.parametrize("name", ["residual", "fused_qkv", "grouped", "channel_shuffle", "translation", "steps_with_memory"])
def test_what_is_counted_is_what_the_smaller_model_has(name: str) -> None:
    found = studied(BY_NAME[name])
    plan = found.plan(Random(), ratio=0.5)
    after = apply(found, plan).after
    assert remaining(Target(macs=0.5), found.cut(plan), found.macs) * found.macs.total == pytest.approx(after.macs)
    assert remaining(Target(parameters=0.5), found.cut(plan), found.macs) * found.parameters == pytest.approx(after.parameters)


def test_whole_heads_and_what_is_inside_them_are_not_mixed() -> None:
    found = studied(BY_NAME["fused_qkv"])
    plan = found.plan(target=Target(macs=0.6), options=Options(reshape_channel_axis=0))
    assert any(edit.kind == "blocks" for edit in plan.prunes)
    assert apply(found, plan).proof.holds


def test_a_mixture_takes_notes_and_channels_from_where_they_come() -> None:
    smaller = Allocation({"a": (1,), "b": (2,), "c": (3,)}, ("a: small", "b: small", "c: same"))
    larger = Allocation({"a": (1, 4), "b": (2, 5), "c": (3,), "d": (6,)}, ("a: large", "b: large", "c: same"))
    candidates = Candidates(lambda ratio: smaller, lambda found: found, lambda remove: pytest.fail("nothing is cut"), frozenset())
    mixed = candidates.mixed(smaller, larger, 1)
    assert mixed == Allocation({"a": (1, 4), "b": (2,), "c": (3,)}, ("a: large", "c: same", "b: small"))
    assert Candidates(candidates.at, candidates.legal, candidates.cut_of, frozenset({"d"})).between(smaller, larger) == ()


def test_a_target_out_of_reach_says_how_far_it_goes() -> None:
    with pytest.raises(SelectionError, match=r"Target\(macs=0.001\) cannot be reached: with all that may go, \d"):
        deep(depth=2).plan(target=Target(macs=0.001))
    with pytest.raises(SelectionError, match="not both"):
        deep(depth=2).plan(target=Target(macs=0.5), ratio=0.5)


def reached(stairs: Stairs, target: float, monkeypatch: pytest.MonkeyPatch, allocator: Allocator | None = None) -> tuple[float, Plan]:
    """The share of parameters that is left, and the plan."""
    on_own_clocks(monkeypatch, stairs)
    found = deep(depth=3)
    options = Options(layer_norm="none")
    plan = found.plan(target=Target(latency=target), allocator=allocator, options=options)
    return remaining(Target(parameters=0.5), found.cut(plan), found.macs), plan


@pytest.mark.parametrize("allocator", [None, GlobalRank(), Knapsack("latency"), Isomorphic(Knapsack("latency"))], ids=str)
def test_a_latency_is_predicted_measured_and_told(allocator: Allocator | None, monkeypatch: pytest.MonkeyPatch) -> None:
    stairs = Stairs(step=0.05)
    left, plan = reached(stairs, 0.5, monkeypatch, allocator)
    assert 0.4 < left <= 0.5
    note, told = plan.settings["notes"][-1], plan.settings["latency"]
    predicted = told["predicted_ms"]["compressed"] / told["predicted_ms"]["dense"]
    assert f"predicted {predicted:.1%} by the times of its layers, measured {stairs.runs[-1][1]:.1%}" in note
    assert told["measured_ms"] == {"dense": 10, "compressed": 10 * stairs.runs[-1][1]}
    assert (told["conditions"]["runtime"], told["tried"]) == ("torch", len({share for _, share in stairs.runs}))


def test_a_prediction_that_is_off_is_corrected_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Stairs(step=0.01, truth=lambda share: 0.3 + 0.7 * share)  # three tenths of the time are in no layer
    slow.truth_always = True
    _, plan = reached(slow, 0.6, monkeypatch)
    told = plan.settings["latency"]
    assert 0.57 <= told["measured_ms"]["compressed"] / told["measured_ms"]["dense"] <= 0.6
    assert told["predicted_ms"]["compressed"] / told["predicted_ms"]["dense"] < 0.55
    assert told["tried"] > 1


def test_a_latency_may_be_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(import_module("secateur.study.study"), "LayerTimes", lambda timer: timers.append(timer) or LayerTimes(timer, None))
    timers: list[object] = []
    found = deep(width=8, depth=1)
    target = Target(latency=0.95, runtime="onnx")
    monkeypatch.setattr("secateur.target.latency.NEAR", 0.99)  # whatever measures within the target will do
    monkeypatch.setattr(Stopwatch, "__call__", lambda self, cut, **_: timed_once(self, cut))
    plan = found.plan(target=target, options=Options(layer_norm="none"))
    assert isinstance(timers[0], OnnxTimer)
    told = plan.settings["latency"]
    assert told["conditions"]["runtime"].startswith("onnxruntime ")
    assert min(told["predicted_ms"].values()) > 0


def timed_once(stopwatch: Stopwatch, cut: Any) -> Timed:
    """Models run, but what is told of the smaller one is that it takes half of the time."""
    source = cut.solution.walk.capture
    found = stopwatch.compare({"dense": source.model, "compressed": draft(cut)}, source.args, source.kwargs, warmup=1, repeats=2)
    half = {name: getattr(found["dense"], name) / 2 for name in ("median_ms", "lower_ms", "upper_ms", "fastest_ms")}
    return Timed(found["dense"], replace(found["compressed"], **half))


class Straight:
    """In the place of plans, predictions and clocks: a plan is the part that it is for, and takes what a law says."""

    dense_ms = 10.0

    def __init__(self, law: Callable[[float], float]) -> None:
        self.law, self.parts = law, []

    def within(self, part: float) -> float:
        self.parts.append(part)
        return round(part, 6)

    def ms(self, part: float) -> float:
        return self.dense_ms * part

    def measure(self, part: float, *, confirm: bool = False) -> Timed:
        return Timed(latency(10.0), latency(10.0 * self.law(part)))

    def run(self, goal: float) -> Forecast:
        return LatencySearch(Target(latency=goal), self.within, lambda: 0.0, self.measure, self.dense_ms, self.ms).run()[1]


def test_a_prediction_that_is_off_by_a_factor_takes_two_tries() -> None:
    straight = Straight(lambda part: 1.25 * part)
    found = straight.run(0.6)
    assert straight.parts == pytest.approx([0.6, 0.6 * 0.99 / 1.25])
    assert (found.tried, found.measured.share) == (2, pytest.approx(0.594))
    assert found.predicted_ms == pytest.approx(10 * straight.parts[-1])


def test_a_correction_stays_within_what_was_found_too_slow_and_fast_enough() -> None:
    falls = Straight(lambda part: 0.9 if part > 0.35 else 0.3)  # 0.6 is too slow, and so is what that is corrected to
    found = falls.run(0.6)
    assert falls.parts == pytest.approx([0.6, 0.396, 0.25608, 0.32604, 0.36102, 0.34353])
    assert found.measured.share == 0.3


def test_what_measures_within_the_target_is_measured_again_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    stairs = Stairs()
    reached(stairs, 0.5, monkeypatch)
    for (repeats, share), (again, _) in zip(stairs.runs, stairs.runs[1:], strict=False):
        if repeats == 15:
            assert again == (45 if share <= 0.5 else 15)


def test_what_a_longer_run_refutes_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    left, plan = reached(Stairs(truth=lambda share: share + 0.15), 0.5, monkeypatch)
    assert 0.2 < left <= 0.3
    assert "measured 45.0%" in plan.settings["notes"][-1]


def test_a_latency_out_of_reach_tells_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    stairs = Stairs(step=1.0, truth=lambda share: 1.1)
    told = r"Target\(latency=0.2\) was not reached: the fastest of the 2 models that were timed took 100.0%"
    with pytest.raises(SelectionError, match=told):
        reached(stairs, 0.2, monkeypatch)


def test_a_prediction_out_of_reach_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest model there is gets measured, even if its layers say that it is too slow."""
    left, plan = reached(Stairs(step=0.001), 0.03, monkeypatch)
    told = plan.settings["latency"]
    assert told["predicted_ms"]["compressed"] / told["predicted_ms"]["dense"] > 0.03 >= left


def test_a_latency_is_of_the_dense_model() -> None:
    found = deep(depth=2)
    with pytest.raises(SelectionError, match="beside the dense model"):
        found.after(found.plan(ratio=0.5)).plan(target=Target(latency=0.2))
    with pytest.raises(SelectionError, match="measured, not counted"):
        remaining(Target(latency=0.5), found.cut(found.plan(ratio=0.5)), found.macs)
    with pytest.raises(SelectionError, match="not both"):
        reach(Target(latency=0.5), Candidates(pytest.fail, pytest.fail, pytest.fail), found.macs, ratio=0.5)  # type: ignore[arg-type]


def test_a_smaller_model_is_really_timed() -> None:
    found = deep(depth=1)
    timed = Stopwatch(repeats=1, budget_s=0.0)(found.cut(found.plan(ratio=0.5)))
    assert (timed.dense.repeats, timed.compressed.repeats) == (1, 1)
    assert timed.share == timed.compressed.median_ms / timed.dense.median_ms
