"""Sums over all pairs of rows of a matrix, without all pairs in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from secateur.score.evidence import precise

TILE = 512
"""Rows of a tile: two tiles in double precision and the pairs between them are what memory holds."""


def pair_sums(rows: Tensor, of_pair: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """For each row the sum of a symmetric function over all other rows: shape ``(rows,)``.

    ``of_pair`` takes tiles ``(a, d)`` and ``(b, d)`` and returns ``(a, b)``. The pair of a row with itself counts zero.
    """
    total = precise(rows.new_zeros(rows.shape[0]))
    for i, first in _tiles(rows):
        for j, second in _tiles(rows[i.start :], i.start):
            values = of_pair(first, second)
            if i == j:
                total[i] += values.fill_diagonal_(0).sum(1)
            else:
                total[i] += values.sum(1)
                total[j] += values.sum(0)
    return total


def _tiles(rows: Tensor, start: int = 0) -> Iterator[tuple[slice, Tensor]]:
    for low in range(0, rows.shape[0], TILE):
        tile = rows[low : low + TILE]
        yield slice(start + low, start + low + tile.shape[0]), precise(tile)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances between rows: shape ``(a, b)``."""
    squares = torch.addmm(a.square().sum(1, keepdim=True) + b.square().sum(1), a, b.T, alpha=-2)
    return squares.clamp_(min=0).sqrt_()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Magnitudes of the cosines between rows; those of a row of zeros are zero."""
    return (_unit(a) @ _unit(b).T).abs_()


def _unit(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms.clamp(min=torch.finfo(rows.dtype).tiny)
