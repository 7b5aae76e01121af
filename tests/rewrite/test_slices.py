"""Shapes of what stays are told without cutting any tensor."""

from __future__ import annotations

import pytest

from cases import CASES, Case, studied
from rewrite.test_equals_masked import plan_of
from secateur.rewrite.slices import Slices


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_shapes_are_those_of_the_parts_that_stay(case: Case) -> None:
    study = studied(case)
    slices = Slices.of(study.cut(plan_of(case, "random")))
    assert bool(slices.kept) == any(group.prunable for group in study.groups)
    for name in slices.kept:
        leaf = study.capture.leaf(name).detach()
        assert slices.shape(name, leaf.shape) == slices.apply(name, leaf).shape != leaf.shape
    assert slices.shape("not cut", (3, 4)) == (3, 4)
