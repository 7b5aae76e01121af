"""Sums over all pairs of rows of a matrix, without all pairs in memory at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.score.equal_rows import equal_rows
from secateur.score.evidence import lengths, precise

TILE, _ELEMENTS = 512, 1 << 20
"""Rows of a tile, and elements where rows are long: two tiles in double precision and the pairs between them are what memory holds."""


def pair_sums(rows: Tensor, of_pair: Callable[[Tensor, Tensor], Tensor], *, of_equals: float, among: Tensor | None = None) -> Tensor:
    """For each row the sum of a symmetric function over all other rows: shape ``(rows,)``, the same to the last bit for equal rows.

    ``of_pair`` takes tiles ``(a, d)`` and ``(b, d)`` of rows that are all different and returns ``(a, b)``; ``of_equals`` is its value for
    two rows that are equal. The pair of a row with itself counts zero. With ``among`` only the rows of these numbers are looked at, in
    their order: shape ``(among,)``.
    """
    first, kind = equal_rows(rows)
    kinds, kind, counts = torch.unique(kind if among is None else kind[among], return_inverse=True, return_counts=True)
    weights = precise(counts)
    total = (weights - 1) * of_equals
    tiles = torch.split(torch.arange(len(kinds), device=rows.device), min(TILE, max(1, _ELEMENTS // max(1, rows.shape[1]))))
    for number, i in enumerate(tiles):
        one = precise(rows[first[kinds[i]]])
        total[i] += of_pair(one, one).fill_diagonal_(0) @ weights[i]
        for j in tiles[number + 1 :]:
            values = of_pair(one, precise(rows[first[kinds[j]]]))
            total[i] += values @ weights[j]
            total[j] += weights[i] @ values
    return total[kind]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between rows: shape ``(a, b)``."""
    squares = torch.addmm(lengths(a).square().unsqueeze(1) + lengths(b).square(), a, b.T, alpha=-2)
    return squares.clamp_(min=0).sqrt_()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Magnitudes of the cosines between rows; those of a row of zeros are zero."""
    return (_unit(a) @ _unit(b).T).abs_()


def _unit(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms.clamp(min=torch.finfo(rows.dtype).tiny)
