"""A study: what it tells of a model, and the plans that it makes and takes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cases import CASES, PIXELS, Case, studied
from networks.convolutional import ShuffleLayer
from secateur.allocate import Options
from secateur.errors import ModelError, PlanError, SelectionError
from secateur.plan import Plan, Prune
from secateur.rewrite import offenders
from secateur.score import L2, OBS, SNP, NuclearNorm, Random, Taylor, Variance
from secateur.score.calibrate import _Watch
from secateur.score.nuclear_norm import FeatureMaps
from secateur.study import Study, study

BY_NAME = {case.name: case for case in CASES}
cases = pytest.mark.parametrize("case", CASES, ids=str)


def of(name: str) -> Study:
    return studied(BY_NAME[name])


@cases
def test_a_plan_goes_to_json_and_back_to_the_same_cut(case: Case) -> None:
    found = studied(case)
    plan = found.plan(Random(seed=4), ratio=0.4)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert np.array_equal(found.cut(again).dead, found.cut(plan).dead)
    assert np.array_equal(found.cut(plan).dead, found.cut_of({e.group: e.remove for e in plan.prunes}).dead)


@cases
def test_a_plan_leaves_no_tensor_empty_or_ragged(case: Case) -> None:
    found = studied(case)
    for ratio in (0.1, 0.5, 0.9):
        assert offenders(found.cut(found.plan(Random(seed=9), ratio=ratio)), found.groups) is None


def test_groups_that_cannot_go_evenly_are_kept_and_that_is_said() -> None:
    found = study(ShuffleLayer(groups=3).eval(), PIXELS(2))
    blocks = [g for g in found.groups if g.kind == "blocks"]
    assert blocks
    assert all("equal numbers must go from each of its rows" in str(g.reason) for g in blocks)
    plan = found.plan(ratio=0.5)
    assert plan.ratios == {"stem.0": 0.5, "second.0": 0.5}
    assert plan.settings["notes"] == []
    with pytest.raises(SelectionError, match="no heads or groups of this model can be removed whole"):
        found.plan(ratio=0.5, heads=0.34)


@cases
def test_a_second_study_finds_the_same(case: Case) -> None:
    first, second = studied(case), study(case.model(), case.inputs())
    assert [(g.name, g.size, g.cells.tolist(), g.reason) for g in first.groups] == [
        (g.name, g.size, g.cells.tolist(), g.reason) for g in second.groups
    ]
    assert first.fingerprint == second.fingerprint
    assert first.plan(ratio=0.5) == second.plan(ratio=0.5)


@pytest.mark.parametrize("name", ["residual", "fused_qkv", "grouped"])
def test_the_same_channels_go_whatever_the_batch_size(name: str) -> None:
    case = BY_NAME[name]
    other = study(case.model(), case.inputs(5))
    assert other.plan(ratio=0.5).edits == of(name).plan(ratio=0.5).edits


def test_scores_have_one_number_a_channel() -> None:
    found = of("fused_qkv")
    scores = found.scores(L2())
    assert {n: len(s) for n, s in scores.items()} == {g.name: g.size for g in found.groups if g.prunable}


def test_what_is_named_goes_and_nothing_else() -> None:
    plan = of("residual").plan(indices={"conv1": [3, 1]})
    assert plan.edits == (Prune("conv1", (1, 3), 12),)
    plan = of("residual").plan(ratios={"conv1": 0.25})
    assert plan.ratios == {"conv1": 0.25}


def test_a_layer_that_is_left_alone_keeps_both_sides() -> None:
    found = of("residual")
    cut = found.cut(found.plan(ratio=0.5, exclude=["conv2"]))
    lost = {(name, dim) for name, dim, _ in cut.slots()}
    assert not [each for each in lost if each[0].startswith("conv2.")]
    assert ("down.weight", 0) in lost


def test_at_least_the_minimum_stays() -> None:
    plan = of("residual").plan(ratio=0.9, options=Options(minimum=5))
    assert all(e.kept >= 5 for e in plan.prunes)


def test_every_head_keeps_equally_many_with_indices_of_its_own() -> None:
    found = of("fused_qkv")
    plan = found.plan(Random(seed=1), ratio=0.5)
    group = next(g for g in found.groups if g.name.endswith("qk"))
    removed = next(e for e in plan.prunes if e.group == group.name).remove
    by_head = [sorted(c % 6 for c in removed if group.cells[c] == head) for head in range(4)]
    assert [len(each) for each in by_head] == [3] * 4
    assert len({tuple(each) for each in by_head}) > 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": -0.1}, "ratio"),
        ({"ratios": {"nothing": 0.5}}, "nothing"),
        ({"indices": {"conv9": [0]}}, "conv"),
        ({"indices": {"conv1": [12]}}, "conv1"),
        ({"indices": {"conv1": list(range(12))}}, "conv1"),
        ({"indices": {"head.fc": [0]}}, "output"),
        ({"ratio": 0.5, "exclude": ["conv9"]}, "conv9"),
        ({"criterion": NuclearNorm(), "ratio": 0.5}, "data"),
    ],
    ids=["all", "negative", "unknown", "unknown index", "out of range", "all of a layer", "whole", "unknown to leave", "no data"],
)
def test_what_cannot_be_followed_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        of("residual").plan(**given)


def test_unequal_numbers_of_heads_are_refused() -> None:
    with pytest.raises(SelectionError, match="equally many"):
        of("fused_qkv").plan(indices={"qkv.v": [0, 1, 6]})


def test_a_plan_of_another_model_is_refused() -> None:
    plan = of("residual").plan(ratio=0.5)
    with pytest.raises(PlanError, match="another model"):
        of("grouped").cut(plan)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Prune("conv9", (0,), 12), "conv9"),
        (Prune("conv1", (0,), 13), "13 channels"),
        (Prune("conv1", (0,), 12, "blocks"), "cuts blocks of .conv1., which holds channels"),
        (Prune("head.fc", (0,), 5), "stays whole"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(edit: Prune, said: str) -> None:
    found = of("residual")
    with pytest.raises(PlanError, match=said):
        found.cut(Plan((edit,), found.fingerprint))


def test_a_plan_with_ragged_heads_is_refused() -> None:
    found = of("fused_qkv")
    with pytest.raises(PlanError, match=r"unequal numbers.*qkv\.v"):
        found.cut(Plan((Prune("qkv.v", (0, 1, 6), 24),), found.fingerprint))


def test_a_model_that_does_not_run_on_its_inputs_is_refused() -> None:
    with pytest.raises(ModelError):
        study(BY_NAME["residual"].model(), torch.randn(2, 4, 8, 8))


def test_nothing_prunable_is_said_so() -> None:
    with pytest.raises(SelectionError, match="reaches the model's output"):
        study(nn.Linear(3, 4), torch.randn(2, 3)).plan(ratio=0.5)


def test_the_fingerprint_knows_names_and_shapes_and_no_values() -> None:
    other = BY_NAME["residual"].model()
    with torch.no_grad():
        other.get_parameter("conv1.weight").mul_(2)
    assert study(other, BY_NAME["residual"].inputs()).fingerprint == of("residual").fingerprint
    assert of("decoder_1d").fingerprint != of("decoder_2d").fingerprint
    assert of("fused_qkv").fingerprint != of("relative_position").fingerprint


def test_several_criteria_see_the_data_once() -> None:
    criteria = {"l2": L2(), "nn": NuclearNorm(), "snp": SNP(), "again": SNP(gamma=2), "obs": OBS(), "taylor": Taylor()}
    case = BY_NAME["fused_qkv"]
    found, data = study(case.model(), case.inputs()), [case.inputs(4)] * 3
    options = Options(policy="sum", layer_norm="tss_norm")
    read = []

    def once() -> Iterator[torch.Tensor]:
        read.append(1)
        yield from data

    scores = found.scores_by(criteria, data=once(), options=options)
    assert read == [1]
    for name, criterion in criteria.items():
        alone = found.scores(criterion, data=data, options=options)
        torch.testing.assert_close(dict(scores[name]), dict(alone), rtol=1e-9, atol=1e-12)


def test_nothing_that_gradients_take_is_kept_by_criteria_that_take_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    see = FeatureMaps.see
    monkeypatch.setattr(FeatureMaps, "see", lambda self, each: (see(self, each), kept.extend(self.stored))[0])
    found = of("fused_qkv")
    found.scores_by({"nn": NuclearNorm(), "taylor": Taylor()}, data=BY_NAME["fused_qkv"].inputs(4))
    assert kept
    assert not any(each.requires_grad for each in kept)


def test_a_pass_over_the_data_runs_the_model_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[object] = []
    shown = _Watch.show
    monkeypatch.setattr(_Watch, "show", lambda self, batch: (batches.append(batch), shown(self, batch))[1])
    found = study(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    found.scores_by({"nn": NuclearNorm(), "variance": Variance(), "obs": OBS()}, data=torch.randn(10, 4))
    assert len(batches) == 5
