"""New rows and columns of projections, as sums of the dense ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.groups.fields import Labels
from secateur.recover.heads import Heads
from secateur.recover.readers import Reader
from secateur.rewrite import Cut, Slices


class Rotated:
    """New rows and columns of projections, put together weight by weight."""

    def __init__(self, cut: Cut) -> None:
        self._capture = cut.solution.walk.capture
        self._slices = Slices.of(cut)
        self._readers: dict[str, Reader] = {}
        self.transforms: dict[str, Tensor] = {}
        self._columns: dict[str, Tensor] = {}

    def kept(self, heads: Heads) -> list[tuple[Labels, Labels]]:
        """For each head that stays in part the neurons that do, and their places among all rows that stay."""
        return heads.kept(self._rows(heads.reader))

    def reads(self, reader: Reader, columns: Labels) -> bool:
        """Whether any of these inputs of a layer stays."""
        mask = self._slices.kept.get(reader.weight, {}).get(0 if reader.transposed else 1)
        return mask is None or bool(mask.ravel()[columns].any())

    def matrix(self, reader: Reader) -> Tensor:
        """A dense weight as ``(out, in)``."""
        return reader.matrix(self._capture.leaf(reader.weight).detach())[0].double().cpu()

    def put(self, reader: Reader, places: Labels, rows: Labels, matrix: Tensor) -> None:
        """New rows of a weight, as sums of its rows."""
        self._readers[reader.weight] = reader
        if reader.weight not in self.transforms:
            size = len(self.matrix(reader))
            self.transforms[reader.weight] = torch.eye(size, dtype=torch.float64)[torch.as_tensor(self._rows(reader))]
        target = self.transforms[reader.weight]
        for place, row in zip(places, matrix, strict=True):
            target[place] = 0
            target[place, torch.as_tensor(rows)] = row

    def put_columns(self, reader: Reader, columns: Labels, values: Tensor) -> None:
        """New columns of a weight that reads, at places of its dense inputs."""
        self._readers[reader.weight] = reader
        self._columns.setdefault(reader.weight, self.matrix(reader).clone())[:, torch.as_tensor(columns)] = values

    def values(self) -> dict[str, Tensor]:
        """New values of all tensors concerned, in the shapes of the smaller model."""
        out = {}
        for name in dict.fromkeys([*self._columns, *self.transforms]):
            reader = self._readers[name]
            like = self._slices.apply(name, self._capture.leaf(name).detach())
            matrix = self._kept_inputs(reader, self._columns[name] if name in self._columns else self.matrix(reader))
            rows = self.transforms[name] @ matrix if name in self.transforms else matrix[torch.as_tensor(self._rows(reader))]
            out[name] = reader.stored(rows.unsqueeze(0), like)
            if name in self.transforms and reader.offset is not None:
                bias = self._capture.leaf(reader.offset[1]).detach()
                out[reader.offset[1]] = (self.transforms[name] @ bias.double().cpu()).to(bias)
        return out

    def _rows(self, reader: Reader) -> Labels:
        dim = 1 if reader.transposed else 0
        mask = self._slices.kept.get(reader.weight, {}).get(dim)
        return np.arange(self._capture.leaf(reader.weight).shape[dim]) if mask is None else np.flatnonzero(mask)

    def _kept_inputs(self, reader: Reader, matrix: Tensor) -> Tensor:
        mask = self._slices.kept.get(reader.weight, {}).get(0 if reader.transposed else 1)
        if mask is None:
            return matrix
        return matrix.reshape(len(matrix), -1, reader.taps)[:, torch.as_tensor(np.flatnonzero(mask))].flatten(1)
