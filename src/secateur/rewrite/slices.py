"""Cut parameters and buffers down to the positions that stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.groups.solve import Mask
from secateur.rewrite.cut import Cut


@dataclass(frozen=True, eq=False)
class Slices:
    """Which positions stay along each dimension of each tensor that gets smaller."""

    kept: Mapping[str, Mapping[int, Mask]]

    @classmethod
    def of(cls, cut: Cut) -> Slices:
        """The slices that a cut asks for."""
        kept: dict[str, dict[int, Mask]] = defaultdict(dict)
        for name, dim, mask in cut.slots():
            kept[name][dim] = mask
        return cls(kept)

    def __contains__(self, name: str) -> bool:
        return name in self.kept

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """The part of a tensor that stays (a copy; of an untouched tensor, the tensor itself)."""
        if name not in self.kept:
            return tensor
        dims = self.kept[name]
        grouped = dims.get(1)
        if grouped is not None and grouped.ndim == 2:
            return _grouped(tensor, dims.get(0), grouped)
        for dim, mask in dims.items():
            tensor = tensor.index_select(dim, _positions(mask, tensor))
        return tensor.contiguous()

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that a tensor gets."""
        new = list(shape)
        for dim, mask in self.kept.get(name, {}).items():
            if mask.ndim == 2:
                counts = mask.sum(1)
                new[dim] = int(counts[counts > 0][0])
            else:
                new[dim] = int(mask.sum())
        return tuple(new)


def _positions(mask: Mask, tensor: Tensor) -> Tensor:
    return torch.as_tensor(np.flatnonzero(mask), device=tensor.device)


def _grouped(weight: Tensor, rows: Mask | None, inputs: Mask) -> Tensor:
    """Cut a grouped weight: kept rows of dimension 0, and in each the kept inputs of its group."""
    groups = inputs.shape[0]
    rows = np.ones(weight.shape[0], dtype=bool) if rows is None else rows
    parts = []
    for weight_part, kept_rows, kept_inputs in zip(weight.chunk(groups), np.split(rows, groups), inputs, strict=True):
        if kept_rows.any() and kept_inputs.any():
            part = weight_part.index_select(0, _positions(kept_rows, weight))
            parts.append(part.index_select(1, _positions(kept_inputs, weight)))
    return torch.cat(parts)
