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

    blocks: Sequence[tuple[Tensor, Tensor]]
    """Columns ``(blocks, d)`` and entries ``(blocks, k, d)`` of all blocks of one shape."""
    order: Tensor
    """Where each row is among those of the blocks."""

    @classmethod
    def of(cls, matrix: Tensor) -> Mixture:
        """The blocks of a matrix."""
        supports, inverse = torch.unique(matrix != 0, dim=0, return_inverse=True)
        found: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for number, support in enumerate(supports):
            rows, columns = (inverse == number).nonzero()[:, 0], support.nonzero()[:, 0]
            found.setdefault((len(rows), len(columns)), []).append((rows, columns))
        stacked = [[torch.stack(part) for part in zip(*alike, strict=True)] for alike in found.values()]
        order = torch.cat([rows.flatten() for rows, _ in stacked]).argsort()
        return cls([(columns, matrix[rows[:, :, None], columns[:, None, :]]) for rows, columns in stacked], order)

    def __call__(self, values: Tensor) -> Tensor:
        """The product along the last dimension: ``(..., in)`` to ``(..., out)``."""
        found = [self._block(values[..., columns.to(values.device)], entries.to(values)) for columns, entries in self.blocks]
        return torch.cat(found, -1)[..., self.order.to(values.device)]

    def _block(self, taken: Tensor, entries: Tensor) -> Tensor:
        single = entries.shape[2] == 1
        return (taken * entries[..., 0] if single else torch.einsum("...bd,bkd->...bk", taken, entries)).flatten(-2)
