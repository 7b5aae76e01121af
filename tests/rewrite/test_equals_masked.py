"""The laws of rewriting, over all case models: pruned equals masked, keep-all is the identity, shapes are as planned."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cases import CASES, Case, call, studied
from secateur.plan import Plan
from secateur.rewrite import Rewritten, rewrite
from secateur.rewrite.apply import Prefer
from secateur.score import L2, Random, Scorer
from secateur.study import study

CHOICES: dict[str, tuple[Scorer, float]] = {"norm": (L2(), 0.25), "random": (Random(seed=1), 0.5), "other random": (Random(seed=2), 0.25)}
cases = pytest.mark.parametrize("case", CASES, ids=str)
outcomes = pytest.mark.parametrize("prefer", ["auto", "graph"])
choices = pytest.mark.parametrize("choice", CHOICES)


def plan_of(case: Case, choice: str) -> Plan:
    """Half of every group, and some of the heads."""
    scorer, heads = CHOICES[choice]
    blocks = any(g.prunable and g.kind == "blocks" for g in studied(case).groups)
    return studied(case).plan(scorer, ratio=0.5, heads=heads if blocks else None)


@cache
def rewritten(case: Case, choice: str, prefer: Prefer) -> Rewritten:
    return rewrite(studied(case).cut(plan_of(case, choice)), prefer=prefer)


def tensors(outputs: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


@cases
@choices
@outcomes
def test_pruned_equals_masked(case: Case, choice: str, prefer: Prefer) -> None:
    result = rewritten(case, choice, prefer)
    assert result.proof.error <= 1e-9
    assert all(t.sensitivity <= 1e-9 for t in result.proof.trials)
    assert prefer == "auto" or result.kind == "graph"


@cases
def test_every_prunable_group_is_cut(case: Case) -> None:
    removed = {e.group: e for e in plan_of(case, "norm").prunes}
    for group in studied(case).groups:
        if group.prunable and group.kind == "channels":
            assert 0.15 <= removed[group.name].ratio <= 0.6, group
    heads = [g for g in studied(case).groups if g.kind == "blocks" and g.prunable and g.rows == 1]
    assert bool(heads) == case.heads
    assert all(removed[g.name].kept == g.size - round(g.size / 4 + 0.01) for g in heads if g.size > 2)


@cases
@outcomes
def test_keeping_all_is_the_identity(case: Case, prefer: Prefer) -> None:
    study = studied(case)
    result = rewrite(study.cut(Plan((), study.fingerprint)), prefer=prefer)
    assert prefer == "graph" or result.kind == "module"
    dense, found = (tensors(call(m, case.inputs())) for m in (study.model, result.model))
    torch.testing.assert_close(found, dense)
    own = study.model.state_dict()
    assert {n: t.shape for n, t in result.model.state_dict().items() if n in own}.items() <= {n: t.shape for n, t in own.items()}.items()


@cases
@outcomes
def test_shapes_are_as_planned(case: Case, prefer: Prefer) -> None:
    study, plan = studied(case), plan_of(case, "norm")
    result = rewritten(case, "norm", prefer)
    removed = {e.group: e.remove for e in plan.prunes}
    lost = _lost_positions(case, removed)
    shapes = {n: t.shape for n, t in result.model.state_dict().items()}
    for name, dense in study.weights.items():
        if name in shapes and name not in study.solution.ledger.grouped:
            expected = tuple(size - len(lost.get((name, dim), ())) for dim, size in enumerate(dense.shape))
            assert shapes[name] == expected, name


def _lost_positions(case: Case, removed: dict[str, tuple[int, ...]]) -> dict[tuple[str, int], set[int]]:
    lost: dict[tuple[str, int], set[int]] = {}
    for group in studied(case).groups:
        for member in group.members:
            gone = member.positions[np.isin(member.channels, removed.get(group.name, ()))]
            lost.setdefault((member.tensor, member.dim), set()).update(gone.tolist())
    return lost


@cases
@outcomes
def test_another_batch_size_gives_the_same_rows(case: Case, prefer: Prefer) -> None:
    result = rewritten(case, "norm", prefer)
    if case.recorded and result.kind == "graph":
        assert any("sizes of these inputs alone" in note for note in result.notes)
        return
    inputs = case.inputs(3)
    first = pytree.tree_map(lambda x: x[:1] if isinstance(x, Tensor) else x, inputs)
    whole, part = (tensors(call(result.model, x)) for x in (inputs, first))
    torch.testing.assert_close([x[:1] for x in whole], part)
    assert [x.shape[0] for x in whole] == [3] * len(whole)


def test_a_proof_of_outputs_that_do_not_depend_on_the_inputs_says_so() -> None:
    silent = nn.Sequential(nn.Linear(3, 8), nn.Hardtanh(0.0, 0.0 + 1e-12), nn.Linear(8, 2)).eval()
    alive = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    for model, says in ((silent, True), (alive, False)):
        found = study(model, torch.randn(4, 3))
        proof = rewrite(found.cut(found.plan(ratio=0.5))).proof
        assert any("do not depend on the inputs" in note for note in proof.notes) == says
