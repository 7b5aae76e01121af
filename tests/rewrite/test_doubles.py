"""Operators without a kernel in double precision, against the kernels in single precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.rewrite.doubles import grouped_matmul

ENDS = torch.tensor([16, 16, 40], dtype=torch.int32)


@pytest.mark.parametrize(
    ("left", "right", "ends"),
    [
        ((48, 16), (3, 16, 32), ENDS),
        ((3, 16, 32), (32, 48), ENDS),
        ((16, 40), (40, 32), ENDS),
        ((3, 16, 32), (3, 32, 16), None),
    ],
    ids=["rows", "columns", "summed", "batch"],
)
def test_grouped_products_are_those_of_torch(left: tuple[int, ...], right: tuple[int, ...], ends: Tensor | None) -> None:
    a, b = torch.randn(left), torch.randn(right)
    wanted = torch._grouped_mm(a, b, offs=ends)
    found = grouped_matmul(a.double(), b.double(), ends)
    assert found.shape == wanted.shape
    if ends is not None and ends[-1] < left[0] and len(right) == 3:
        wanted, found = wanted[: ends[-1]], found[: ends[-1]]
    if ends is not None and len(left) == 3:
        wanted, found = wanted[:, : ends[-1]], found[:, : ends[-1]]
    torch.testing.assert_close(found.float(), wanted)
