"""Operators that have no kernel in double precision, computed from others that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def grouped_matmul(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Compute ``aten._grouped_mm``: `offs` holds the end of each group along the rows, the columns, or the summed dimension."""
    if offs is None:
        return a @ b if bias is None else a @ b + bias
    ends = offs.tolist()
    spans = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    if a.dim() == b.dim() == 2:
        return torch.stack([a[:, span] @ b[span] for span in spans])
    if a.dim() == 2:
        rows = [a[span] @ b[group] for group, span in enumerate(spans)]
        return torch.cat([*rows, a.new_zeros(len(a) - ends[-1], b.shape[-1])])
    columns = [a[group] @ b[:, span] for group, span in enumerate(spans)]
    return torch.cat([*columns, a.new_zeros(a.shape[1], b.shape[1] - ends[-1])], dim=1)


IN_DOUBLE: dict[Any, Callable[..., Any]] = {aten._grouped_mm.default: grouped_matmul}
