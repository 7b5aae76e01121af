"""Every criterion on every kind of layer and attention: channels that do nothing come last, and cutting them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case, call
from secateur.allocate import GlobalRank, Options
from secateur.groups import ChannelGroup
from secateur.rewrite import draft
from secateur.score import L2, SNP, GeometricMedian, NuclearNorm, Random, Scorer
from secateur.study import Study, study

ATTENTION = ("separate_qkv", "fused_qkv", "head_major_qkv", "library_attention", "einsum_attention", "rotary", "expanded_keys")
CONVOLUTIONS = ("residual", "grouped", "separable", "decoder_1d", "decoder_2d", "decoder_3d", "grouped_decoder")
OTHERS = ("class_token", "mixer", "language_model")
BY_NAME = {case.name: case for case in CASES}
KINDS = [BY_NAME[name] for name in (*CONVOLUTIONS, *ATTENTION, *OTHERS)]
CRITERIA: list[Scorer] = [L2(), L2(fold_bn=True), GeometricMedian(), GeometricMedian(mix=0.25), NuclearNorm(), SNP(), Random()]

PLAIN = Options(policy="sum", layer_norm="none")

kinds = pytest.mark.parametrize("case", KINDS, ids=str)
attention = pytest.mark.parametrize("case", [BY_NAME[name] for name in ATTENTION], ids=str)


def channels(found: Study) -> list[ChannelGroup]:
    return [g for g in found.groups if g.prunable and g.kind == "channels"]


def silence(found: Study, group: ChannelGroup, gone: tuple[int, ...]) -> None:
    """Set all weights and shifts that make some channels of a group to zero."""
    for member in group.members:
        if member.role == "writes" or member.tensor.endswith("bias"):
            tensor = found.weights[member.tensor].detach()
            elements = member.flatten(torch.arange(tensor.numel()).view(tensor.shape))
            tensor.view(-1)[elements[torch.as_tensor(np.isin(member.channels, gone))].flatten()] = 0


def one_of_each_cell(group: ChannelGroup) -> tuple[int, ...]:
    """Channels that may go together: as many of each head or group as one step takes."""
    return tuple(c for cell, take in enumerate(group.take) for c in np.flatnonzero(group.cells == cell)[-take:].tolist())


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
@kinds
def test_every_channel_has_a_score_of_its_own(criterion: Scorer, case: Case) -> None:
    found = study(case.model(), case.inputs())
    scores = found.scores(criterion, data=[case.inputs(8)])
    for group in channels(found):
        values = scores[group.name]
        assert values.shape == (group.size,)
        assert torch.isfinite(values).all()
        assert values.unique().numel() >= group.size // 2


@pytest.mark.parametrize("criterion", [L2(), L2(fold_bn=True), NuclearNorm(), SNP()], ids=str)
@kinds
def test_channels_that_are_silent_score_zero_and_no_others(criterion: Scorer, case: Case) -> None:
    found = study(case.model(), case.inputs())
    gone = {group.name: one_of_each_cell(group) for group in channels(found)}
    for group in channels(found):
        silence(found, group, gone[group.name])
    scores = found.scores(criterion, data=[case.inputs(8)], options=PLAIN)
    for group in channels(found):
        assert torch.nonzero(scores[group.name] == 0).flatten().tolist() == sorted(gone[group.name])


@attention
def test_a_head_dimension_without_queries_and_keys_goes_unnoticed(case: Case) -> None:
    """The scale stays that of the dense head: a thinner head with the same scores attends alike."""
    found = study(case.model(), case.inputs())
    group = next(g for g in channels(found) if g.name.rpartition(".")[2] == "qk")
    silence(found, group, one_of_each_cell(group))
    expected = outputs(found.model, case)
    plan = found.plan(SNP(), ratios={group.name: 1.01 / (group.size // group.rows)}, data=[case.inputs(8)])
    assert plan.prunes[0].remove == tuple(sorted(one_of_each_cell(group)))
    torch.testing.assert_close(outputs(draft(found.cut(plan)), case), expected)


def outputs(model: nn.Module, case: Case) -> Tensor:
    with torch.no_grad():
        found = call(model, case.inputs())
    assert isinstance(found, Tensor)
    return found


WEIGHTS_ALONE: list[Scorer] = [L2(), L2(fold_bn=True), GeometricMedian(), GeometricMedian(mix=0.25), Random()]


@pytest.mark.parametrize("name", ["residual", "grouped", "fused_qkv", "language_model"])
def test_a_model_in_half_precision_gets_the_plan_of_its_weights(name: str) -> None:
    case = BY_NAME[name]
    half, exact = (study(case.model().bfloat16().to(dtype), cast(case.inputs(), dtype)) for dtype in (torch.bfloat16, torch.float64))
    for criterion in WEIGHTS_ALONE:
        assert half.plan(criterion, ratio=0.5).edits == exact.plan(criterion, ratio=0.5).edits
    plan = half.plan(NuclearNorm() if name == "residual" else SNP(), ratio=0.5, data=[cast(case.inputs(8), torch.bfloat16)])
    model = draft(half.cut(plan))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def cast(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


@pytest.mark.parametrize("name", ["residual", "fused_qkv"])
def test_one_and_two_threads_make_the_same_plan(name: str) -> None:
    case = BY_NAME[name]
    plans = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = study(case.model(), case.inputs())
        plans.append([found.plan(c, ratio=0.4, data=[case.inputs(8)], allocator=GlobalRank()).edits for c in CRITERIA])
    assert plans[0] == plans[1]
