"""Cutting in steps with training between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Case, call
from secateur.errors import RewriteError
from secateur.rewrite import compose, edits_of

SOME = ("residual", "dense_block", "grouped", "padded_shortcut", "separate_qkv", "fused_qkv", "rotary", "mixer")
BRIEF = sc.FineTune(epochs=1, rate=0.02)


def lessons(count: int = 32) -> tuple[Tensor, Tensor]:
    """Points of three classes."""
    labels = torch.arange(count) % 3
    return torch.randn(count, 4) + labels.unsqueeze(1), labels


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SOME], ids=str)
def test_two_cuts_are_one(case: Case) -> None:
    inputs = case.inputs()
    dense = sc.study(case.model(), inputs)
    first = dense.plan(ratio=0.3)
    once = sc.apply(dense, first)
    small = dense.again(once.model)
    second = small.plan(sc.GeometricMedian(), ratio=0.3)
    twice = sc.apply(small, second).model
    plan = sc.Plan(edits_of(compose(dense.cut(once.plan), small.cut(second)), dense.groups), dense.fingerprint)
    torch.testing.assert_close(call(sc.apply(dense, plan).model, inputs), call(twice, inputs))


def test_channels_of_the_second_cut_are_numbered_in_the_dense_model() -> None:
    model = perceptron()
    dense = sc.study(model, torch.randn(2, 4))
    first = dense.plan(indices={"0": [0, 2], "2": [11]})
    small = dense.again(sc.apply(dense, first).model)
    second = small.plan(indices={"0": [0, 12]})
    edits = edits_of(compose(dense.cut(first), small.cut(second)), dense.groups)
    assert {edit.group: edit.remove for edit in edits} == {"0": (0, 1, 2, 14), "2": (11,)}


def test_cuts_of_other_models_are_not_put_together() -> None:
    one, other = (sc.study(nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 3)), torch.randn(2, 4)) for n in (8, 6))
    with pytest.raises(RewriteError, match="has 6 positions"):
        compose(one.cut(one.plan(ratio=0.5)), other.cut(other.plan(ratio=0.5)))


@pytest.mark.parametrize("spacing", ["geometric", "even"])
@pytest.mark.parametrize("prefer", ["module", "graph"])
def test_steps_lead_to_the_target(spacing: Any, prefer: Any, tmp_path: Path) -> None:
    model, (x, y) = perceptron(), lessons()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    schedule = sc.Iterative(steps=3, tune=BRIEF, spacing=spacing, prefer=prefer)
    done = schedule(model, x, (x, y), target=sc.Target(macs=0.4), metric=lambda m: -float(nn.functional.cross_entropy(m(x), y)))
    assert done.composed
    assert done.steps[-1].record.best_epoch == 1
    share = done.result.after.macs / done.result.before.macs
    assert 0.33 < share <= 0.4
    shares = [step.target for step in done.steps]
    wanted = [0.4 ** (1 / 3), 0.4 ** (2 / 3), 0.4] if spacing == "geometric" else [0.8, 0.6, 0.4]
    np.testing.assert_allclose(shares, wanted)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(done.result.model(x), done.steps[-1].result.model(x))
    assert set(done.result.metrics) == {f"metric after step {number}" for number in (1, 2, 3)}
    done.result.save(tmp_path / "out", onnx=False)
    torch.testing.assert_close(sc.load(tmp_path / "out", into=perceptron())(x), done.result.model(x))


def test_a_ratio_is_reached_in_equal_shares_and_the_last_training_may_be_longer() -> None:
    model, (x, y) = perceptron(), lessons()
    done = sc.Iterative(steps=2, tune=BRIEF, last=sc.FineTune(epochs=3))(model, x, (x, y), ratio=0.75)
    assert [step.result.model[0].out_features for step in done.steps] == [8, 4]
    assert [len(step.record.epochs) for step in done.steps] == [1, 3]
    assert done.result.plan.ratios == {"0": 0.75, "2": 0.75}


def test_the_dense_model_teaches_features_in_every_step() -> None:
    model, (x, y) = perceptron(), lessons()
    taught = sc.FineTune(epochs=1, distillation=sc.Distillation(feature_weight=1.0))
    done = sc.Iterative(steps=2, tune=taught)(model, x, (x, y), ratio=0.5)
    assert all(step.record.features == ("0", "2") for step in done.steps)


def test_plans_that_cannot_be_put_together_stay_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(first: Any, second: Any) -> Any:
        raise RewriteError("the groups differ")

    monkeypatch.setattr("secateur.iterative.compose", refuse)
    model, (x, y) = perceptron(), lessons()
    done = sc.Iterative(steps=2, tune=BRIEF)(model, x, (x, y), ratio=0.75)
    assert not done.composed
    assert len(done.plans) == 2
    assert "the groups differ" in done.result.notes[-1]
    assert done.result.before.parameters == sum(parameter.numel() for parameter in model.parameters())
    small = sc.apply(sc.apply(model, done.plans[0], x).model, done.plans[1], x).model
    assert [p.shape for p in small.parameters()] == [p.shape for p in done.result.model.parameters()]


def test_a_run_of_steps_resumes(tmp_path: Path) -> None:
    model, (x, y) = perceptron(), lessons()
    kept = sc.Iterative(steps=2, tune=sc.FineTune(epochs=1, checkpoints=tmp_path))
    whole = kept(model, x, (x, y), ratio=0.75)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]
    (tmp_path / "step-2" / "checkpoint.safetensors").unlink()
    again = kept(model, x, (x, y), ratio=0.75, resume=True)
    torch.testing.assert_close(again.result.model(x), whole.result.model(x), rtol=0, atol=0)


@pytest.mark.parametrize("goal", [{}, {"ratio": 0.5, "target": sc.Target(macs=0.5)}, {"target": sc.Target(latency=0.5)}])
def test_one_goal_is_needed(goal: dict[str, Any]) -> None:
    x, y = lessons()
    with pytest.raises(sc.SelectionError, match="one of them"):
        sc.Iterative(steps=2)(perceptron(), x, (x, y), **goal)
    with pytest.raises(sc.SelectionError, match="0 steps"):
        sc.Iterative(steps=0)
