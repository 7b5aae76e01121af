"""The teacher: distances of logits and features, and which channels of the dense model they are taken of."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from cases import CASES, Case, call, studied
from secateur.tune.features import match_features, watching
from tune.models import cut_to_half, perceptron, residual, vectors

FEATURES = sc.Distillation(label_weight=0.0, logit_weight=0.0, feature_weight=1.0)


def test_logits_are_compared_at_a_temperature() -> None:
    student, teacher, (x, y) = perceptron(), nn.Linear(4, 3), vectors()
    with sc.Distillation(label_weight=0.25, logit_weight=0.5, temperature=2.0).between(student, teacher) as held:
        outputs = student(x)
        label = functional.cross_entropy(outputs, y)
        loss = held(label, outputs, x)
    p, q = (torch.softmax(scores / 2, 1) for scores in (teacher(x), outputs))
    apart = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, 0.25 * label + 0.5 * apart)
    torch.testing.assert_close(held.parts["logits"], apart.detach())


def test_a_model_is_its_own_perfect_teacher() -> None:
    model, x = residual(), torch.randn(2, 3, 8, 8)
    study = sc.study(model, x)
    student = copy.deepcopy(model)
    with replace(FEATURES, logit_weight=1.0).between(student, model, study.cut(sc.Plan((), study.fingerprint))) as held:
        assert float(held(None, student(x), x).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("prefer", ["module", "graph"])
def test_the_first_layer_of_a_cut_model_has_the_features_of_the_kept_channels(prefer: Any) -> None:
    model, (x, _) = perceptron(), vectors()
    student, study, plan = cut_to_half(model, x, prefer=prefer)
    with replace(FEATURES, features=("0",)).between(student, model, study.cut(plan)) as held:
        assert float(held(None, student(x), x).detach()) == pytest.approx(0, abs=1e-12)
    other = study.plan(indices={"0": sorted(set(range(8)) - set(plan.prunes[0].remove))})
    with replace(FEATURES, features=("0",)).between(student, model, study.cut(other)) as held:
        assert float(held(None, student(x), x).detach()) > 0.1


def test_features_are_relative_distances_averaged_over_layers() -> None:
    model, (x, _) = perceptron(), vectors()
    student = copy.deepcopy(model)
    with torch.no_grad():
        student[0].weight *= 2
        student[0].bias *= 2
        student[2].weight /= 2
    with replace(FEATURES, features=("0", "2")).between(student, model) as held:
        assert float(held(None, student(x), x).detach()) == pytest.approx(0.5)


def test_gradients_of_features_reach_the_student_alone() -> None:
    model, (x, _) = perceptron(), vectors()
    student, study, plan = cut_to_half(model, x)
    with FEATURES.between(student, model, study.cut(plan)) as held:
        assert [feature.name for feature in held.features.found] == ["0"]
        with torch.no_grad():
            student[0].weight += 1
        held(None, student(x), x).backward()
    assert float(student[0].weight.grad.abs().sum()) > 0
    assert model[0].weight.grad is None


def test_an_evaluation_between_steps_does_not_count() -> None:
    model, (x, _) = perceptron(), vectors()
    student = copy.deepcopy(model)
    with FEATURES.between(student, model) as held:
        with torch.no_grad():
            student(x)
        held(None, student(x), x).backward()


def test_the_teacher_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    before, (x, _) = copy.deepcopy(model.state_dict()), vectors()
    with sc.Distillation(feature_weight=1.0).between(copy.deepcopy(model), model) as held:
        student = copy.deepcopy(model)
        held._teacher(x)
        assert not held._teacher.training
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert student.training


def test_by_default_outputs_that_go_into_a_sum_are_compared() -> None:
    model, x = residual(), torch.randn(2, 3, 8, 8)
    student, study, plan = cut_to_half(model, x)
    found = match_features(student, model, study.cut(plan)).found
    assert [feature.name for feature in found] == ["norm2", "down", "conv3"]


SOME = {"residual", "dense_block", "grouped", "separable", "squeeze_excite", "fused_qkv", "library_attention", "rotary"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SOME], ids=str)
def test_features_have_the_shape_of_the_student(case: Case) -> None:
    study = studied(case)
    model, inputs = study.model, case.inputs()
    plan = study.plan(ratio=0.5)
    student = sc.apply(study, plan).model
    found = match_features(student, model, study.cut(plan)).found
    wanted = [feature.name for feature in found]
    assert wanted
    with torch.no_grad(), watching(model, wanted) as dense, watching(student, wanted) as small:
        call(model, inputs)
        call(student, inputs)
    for feature in found:
        assert feature(dense[feature.name][0]).shape == small[feature.name][0].shape


@pytest.mark.parametrize(
    ("settings", "cut", "error"),
    [
        (replace(FEATURES, features=("nowhere",)), True, sc.SelectionError),
        (replace(FEATURES, features=("0",)), False, sc.ModelError),
    ],
)
def test_features_that_cannot_be_compared(settings: sc.Distillation, cut: bool, error: type[Exception]) -> None:
    model, (x, _) = perceptron(), vectors()
    student, study, plan = cut_to_half(model, x)
    with pytest.raises(error), settings.between(student, model, study.cut(plan) if cut else None) as held:
        held(None, student(x), x)


def test_teachers_of_another_task_are_refused() -> None:
    student, (x, _) = perceptron(), vectors()
    with sc.Distillation().between(student, nn.Linear(4, 5)) as held, pytest.raises(sc.ModelError, match="different shapes"):
        held(None, student(x), x)


def test_what_follows_in_place_does_not_change_features() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu_(self.first(x)))

    torch.manual_seed(0)
    model, (x, _) = InPlace().eval(), vectors()
    student, study, plan = cut_to_half(model, x, prefer="graph")
    with replace(FEATURES, features=("first",)).between(student, model, study.cut(plan)) as held:
        assert float(held(None, student(x), x).detach()) == pytest.approx(0, abs=1e-12)
