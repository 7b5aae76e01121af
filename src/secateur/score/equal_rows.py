"""Which rows of a weight are equal to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.score.evidence import lengths

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FEW = 256
"""Rows that are looked at together."""


def equal_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each kind of rows, in order, and for each row its kind.

    Only rows whose lengths others have too are compared, by one number that equal rows share; should different ones share it, all count
    as different.
    """
    first = torch.arange(rows.shape[0], device=rows.device)
    _, number, counts = torch.unique(lengths(rows), return_inverse=True, return_counts=True)
    shared = torch.nonzero(counts[number] > 1).flatten()
    found = _first_alike(rows, shared)
    if all(torch.equal(rows[a], rows[b]) for a, b in zip(torch.split(shared, _FEW), torch.split(found, _FEW), strict=True)):
        first[shared] = found
    kinds, kind = torch.unique(first, return_inverse=True)
    return kinds, kind


def _first_alike(rows: Tensor, shared: Tensor) -> Tensor:
    factors = torch.randint(1 << 62, rows.shape[1:], generator=torch.Generator().manual_seed(0)).to(rows.device) * 2 + 1
    numbers = [(rows[part].view(_BITS[rows.element_size()]).long() * factors).sum(1) for part in torch.split(shared, _FEW)]
    _, kind = torch.unique(torch.cat(numbers), return_inverse=True)
    return torch.full_like(shared, rows.shape[0]).scatter_reduce_(0, kind, shared, "amin")[kind]
