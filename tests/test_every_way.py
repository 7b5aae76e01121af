"""Every way of compressing runs on every construct, is proven, or says why it does not apply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import secateur as sc
from cases import CASES, Case

ABLE = [case for case in CASES if case.whole is None]
WAYS: dict[str, dict[str, Any]] = {
    "pruned": {"target": sc.Target(macs=0.8)},
    "cheaper": {"target": sc.Target(macs=0.75), "decompose": sc.Cheaper()},
}


def batches(case: Case) -> list[Any]:
    """Calibration data: the example, and inputs of other values."""
    torch.manual_seed(3)
    example = case.inputs()
    return [
        example,
        *(pytree.tree_map(lambda x: torch.randn_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x, example),) * 2,
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ABLE, ids=str)
def test_a_model_is_compressed_with_data_and_proven(case: Case, way: str) -> None:
    try:
        result = sc.compress(case.model(), case.inputs(), data=batches(case), latency=False, **WAYS[way])
    except sc.SelectionError as error:
        assert way == "cheaper"
        assert "cannot" in str(error)  # noqa: PT017
    else:
        assert result.proof.holds
        assert result.after.macs < result.before.macs
