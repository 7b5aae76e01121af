"""A large matrix most of whose entries are zero: whole heads are mixed, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """A matrix ``(out, in)`` as blocks, each of several rows that have their entries in the same columns.

    >>> mixture = Mixture.of(torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 1], [3, 4, 0, 0]]))
    >>> mixture(torch.tensor([1.0, 1, 1, 5]))
    tensor([3., 5., 7.])
    """

    size: int
    blocks: Sequence[tuple[Tensor, Tensor, Tensor]]
    """Rows ``(blocks, k)``, columns ``(blocks, d)`` and entries ``(blocks, k, d)`` of all blocks of one shape."""

    @classmethod
    def of(cls, matrix: Tensor) -> Mixture:
        """The blocks of a matrix."""
        supports, inverse = torch.unique(matrix != 0, dim=0, return_inverse=True)
        found: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for number, support in enumerate(supports):
            rows, columns = (inverse == number).nonzero()[:, 0], support.nonzero()[:, 0]
            found.setdefault((len(rows), len(columns)), []).append((rows, columns))
        return cls(len(matrix), [_stacked(matrix, alike) for alike in found.values()])

    def __call__(self, values: Tensor) -> Tensor:
        """The product along the last dimension: ``(..., in)`` to ``(..., out)``."""
        out = values.new_empty(*values.shape[:-1], self.size)
        for rows, columns, entries in self.blocks:
            taken, weights = values[..., columns.to(values.device)], entries.to(values)
            single = columns.shape[1] == 1
            out[..., rows.to(values.device)] = taken * weights[..., 0] if single else torch.einsum("...bd,bkd->...bk", taken, weights)
        return out


def _stacked(matrix: Tensor, alike: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = (torch.stack(parts) for parts in zip(*alike, strict=True))
    return rows, columns, matrix[rows[:, :, None], columns[:, None, :]]
