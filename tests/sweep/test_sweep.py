"""Points of a sweep are what compress makes, and the dense model stays as it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.measure import compare_outputs
from secateur.sweep import run, trial
from sweep.models import network, samples, weight

TARGETS = (0.75, 0.5, 0.3)


@pytest.fixture(scope="module")
def found() -> sc.Sweep:
    return sc.sweep(network(), samples(8), TARGETS, data=samples(), evaluate=weight)


@pytest.mark.parametrize("settings", [{}, {"criterion": sc.L2(), "recover": sc.Nothing()}, {"exclude": ("0",)}], ids=str)
def test_each_point_is_what_compress_makes(settings: dict[str, Any]) -> None:
    swept = sc.sweep(network(), samples(8), TARGETS, data=samples(), evaluate=weight, **settings)
    assert [point.target for point in swept.points] == list(TARGETS)
    for point in swept.points:
        alone = sc.compress(network(), samples(8), target=sc.Target(macs=point.target), data=samples(), latency=False, **settings)
        assert point.plan.edits == alone.plan.edits
        assert (point.macs, point.parameters) == (alone.after.macs, alone.after.parameters)
        assert point.metric == pytest.approx(weight(alone.model), rel=1e-4)
        assert 0 <= point.proof_error < 1e-5
    assert swept.dense.metric == weight(network())


def test_targets_of_parameters_are_weighed_by_parameters() -> None:
    swept = sc.sweep(network(), samples(8), [sc.Target(parameters=0.5), sc.Target(parameters=0.7)], evaluate=weight)
    assert swept.quantity == "parameters"
    assert [swept.cost(point) for point in swept.points] == [point.parameters for point in swept.points]
    assert all(point.parameters <= point.target * swept.dense.parameters for point in swept.points)
    assert "parameters that remain (%)" in swept.svg()


def test_it_studies_and_scores_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> None:
        real = getattr(run, name)
        monkeypatch.setattr(run, name, lambda *a, **k: (calls.append(name), real(*a, **k))[1])

    counted("study")
    counted("suited")
    sc.sweep(network(), samples(8), TARGETS, data=samples())
    assert sorted(calls) == ["study", "suited"]


def test_the_dense_model_stays_as_it_is() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[bool] = []
    sc.sweep(model, samples(8), TARGETS, data=samples(), evaluate=lambda m: float(seen.append(m.training) or 0))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training
    assert seen == [False] * 4


def test_without_a_metric_it_is_the_fidelity() -> None:
    swept = sc.sweep(network(), samples(8), [0.5], data=samples(), recover=sc.Nothing())
    small = sc.apply(network(), swept.points[0].plan, samples(8)).model
    assert swept.metric == "fidelity"
    assert swept.dense.metric == 1
    assert swept.points[0].metric == pytest.approx(1 - compare_outputs(network(), small, [samples()]).relative_l2)
    assert "data which served" in swept.notes[0]
    assert "example inputs" in sc.sweep(network(), samples(8), [0.5]).notes[0]


def test_the_data_are_read_once() -> None:
    swept = sc.sweep(network(), samples(8), TARGETS, data=iter(samples().split(16)))
    assert len(swept.points) == 3


def test_the_front_leaves_out_what_another_point_beats(found: sc.Sweep) -> None:
    first, second, third = found.points
    changed = replace(
        found,
        dense=replace(found.dense, metric=0.9),
        points=tuple(replace(p, metric=m) for p, m in [(first, 0.4), (second, 0.6), (third, 0.1)]),
    )
    assert [point.target for point in changed.front] == [0.3, 0.5]
    assert [row["front"] for row in changed.to_json()["points"]] == [False, True, True]
    better = replace(changed, dense=replace(found.dense, macs=1, metric=1.0))
    assert better.front == ()


def test_a_target_that_cannot_be_reached_is_told() -> None:
    swept = sc.sweep(network(), samples(8), [0.5, 0.001], evaluate=weight)
    assert [point.target for point in swept.points] == [0.5]
    assert [one.what for one in swept.missed] == ["0.001"]
    assert "0.001 was missed: " in str(swept)
    assert "cannot be reached" in swept.to_json()["missed"][0]["reason"]
    with pytest.raises(sc.SelectionError, match="Nothing came of it"):
        sc.sweep(network(), samples(8), [0.001], evaluate=weight)


def test_a_proof_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sc.apply

    def failing(found: Any, plan: sc.Plan, **settings: Any) -> sc.Result:
        if plan.settings["target"] == "Target(macs=0.5)":
            raise sc.ProofError("not equal")
        return real(found, plan, **settings)

    monkeypatch.setattr(trial, "apply", failing)
    swept = sc.sweep(network(), samples(8), TARGETS, evaluate=weight)
    assert [(one.what, one.reason) for one in swept.missed] == [("0.5", "not equal")]
    assert [point.target for point in swept.points] == [0.75, 0.3]


def test_the_json_is_whole_and_its_plans_can_be_applied(found: sc.Sweep) -> None:
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["format"] == "secateur-sweep/1"
    assert told["metric"] == "weight"
    assert told["dense"] == {"macs": found.dense.macs, "parameters": found.dense.parameters, "metric": found.dense.metric}
    for row, point in zip(told["points"], found.points, strict=True):
        assert row["macs_remain"] == point.macs / found.dense.macs
        assert sc.Plan.from_json(json.dumps(row["plan"])).edits == point.plan.edits


def test_a_metric_that_is_no_number_becomes_text_and_is_not_on_the_front() -> None:
    swept = sc.sweep(network(), samples(8), [0.5], evaluate=lambda model: math.nan)
    assert swept.to_json()["points"][0]["metric"] == "nan"
    assert swept.front == ()
    assert "not drawn" in swept.svg()


def test_the_table_has_a_row_a_point(found: sc.Sweep) -> None:
    rows = [line for line in str(found).splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["dense", "0.75", "0.5", "0.3"]
    assert max(map(len, str(found).splitlines())) <= 80


def test_latency_is_timed_where_asked_for(found: sc.Sweep) -> None:
    swept = sc.sweep(network(), samples(8), [0.5], evaluate=weight, latency=True)
    assert set(swept.points[0].latency) == {"dense", "compressed"}
    assert "latency" in str(swept)
    assert "latency" not in str(found)


def test_it_is_saved_whole_or_not_at_all(found: sc.Sweep, tmp_path: Path) -> None:
    path = found.save(tmp_path / "out")
    names = {"sweep.json", "sweep.svg", "sweep.txt", "plan-0.75.json", "plan-0.5.json", "plan-0.3.json"}
    assert {file.name for file in path.iterdir()} == names
    assert ElementTree.parse(path / "sweep.svg").getroot().tag.endswith("svg")
    assert sc.Plan.load(path / "plan-0.5.json").edits == found.points[1].plan.edits
    with pytest.raises(sc.FileError, match="exists already"):
        found.save(path)
    less = replace(found, points=found.points[:1])
    less.save(path, force=True)
    assert {file.name for file in path.iterdir()} == names - {"plan-0.5.json", "plan-0.3.json"}


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        ([], "over none"),
        ([0.5, sc.Target(parameters=0.5)], "of MACs, or over targets of parameters"),
        ([sc.Target(latency=0.5)], "latency"),
        ([0.5, 0.50], "each target once"),
        ([1.5], "between 0 and 1"),
    ],
)
def test_targets_that_make_no_sweep_are_refused(targets: list[float], match: str) -> None:
    with pytest.raises(sc.SelectionError, match=match):
        sc.sweep(network(), samples(8), targets)


def test_a_metric_that_returns_no_number_is_refused() -> None:
    def pair(model: nn.Module) -> Any:
        return (1, 2)

    with pytest.raises(sc.UsageError, match="pair returned tuple"):
        sc.sweep(network(), samples(8), [0.5], evaluate=pair)
