"""A draft computes what the proven model computes, and is of the same kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cases import CASES, Case, call, studied
from secateur.pipeline import apply
from secateur.rewrite import draft
from secateur.score import Random
from secateur.study import study

SOME = [
    case for case in CASES if case.name in ("residual", "fused_qkv", "grouped", "relative_position", "decoder_1d", "inception", "recurrent")
]


def outputs(model: nn.Module, case: Case) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(call(model.eval(), case.inputs())) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_a_draft_equals_the_proven_model(case: Case) -> None:
    found = studied(case)
    plan = found.plan(Random(seed=5), ratio=0.5)
    result = apply(found, plan)
    small = draft(found.cut(plan))
    assert isinstance(small, type(found.model)) == (result.kind == "module")
    for have, want in zip(outputs(small, case), outputs(result.model, case), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-4)
    assert small.training == found.model.training


class Folding(nn.Module):
    """Its forward runs at any width, but divides by the width that it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(torch.relu(hidden) / len(self.first.bias))


def test_a_class_that_runs_and_computes_something_else_is_not_taken() -> None:
    torch.manual_seed(0)
    found = study(Folding().eval(), torch.randn(2, 4))
    small = draft(found.cut(found.plan(ratio=0.5)))
    assert not isinstance(small, Folding)
