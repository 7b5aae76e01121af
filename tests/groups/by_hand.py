"""Ask a three-line function which positions of its operands go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from secateur.groups import Solution
from secateur.groups.fields import NONE, Labels
from secateur.study import Study, study

Shape = tuple[int, ...]


class Operands(nn.Module):
    """A function of activations that are labelled along all their dimensions: ``a``, ``b``, ... times a scalar input."""

    def __init__(self, function: Callable[..., Tensor], shapes: tuple[Shape, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in zip("abcdef", shapes, strict=False):
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*(p * x for p in self.parameters())).sum()


@dataclass(frozen=True)
class Found:
    """What an analysis says of the operands of one function."""

    study: Study

    @property
    def solution(self) -> Solution:
        return self.study.solution

    @cached_property
    def _first(self) -> dict[int, tuple[str, int, int]]:
        first: dict[int, tuple[str, int, int]] = {}
        for (name, dim), labels in self.solution.slot_labels.items():
            for place, each in enumerate(self.solution.classes[labels.ravel()].tolist()):
                first.setdefault(each, (name, dim, place))
        return first

    def __getitem__(self, place: str) -> list[str | None]:
        """For each position of ``"a0"`` (dimension 0 of operand ``a``) the first position that it goes with, or ``None`` if it stays."""
        labels = self.solution.slot_labels[place[0], int(place[1:])].ravel()
        return [self._name(each) for each in self.solution.classes[labels].tolist()]

    def _name(self, each: int) -> str | None:
        if self.solution.frozen[each]:
            return None
        name, dim, position = self._first[each]
        return f"{name}{dim}[{position}]"

    def why(self, place: str) -> str:
        """Why a dimension stays whole."""
        labels = self.solution.slot_labels[place[0], int(place[1:])].ravel()
        return self.solution.reasons[int(self.solution.classes[labels[0]])].text

    def fields(self, operator: str) -> list[tuple[frozenset[int], bool]]:
        """Dimensions and kind of the fields of the last call of an operator."""
        node = [n for n in self.study.capture.graph.nodes if str(n.target).startswith(operator)][-1]
        return [(f.dims, f.block) for f in self.solution.walk.tensor_fields(node)]

    def heads(self, place: str) -> list[int]:
        """The number of the block that each position lies in, or -1."""
        labels: Labels = self.solution.slot_labels[place[0], int(place[1:])].ravel()
        rows = self.solution.belongs[self.solution.threads[labels[labels != NONE]]].tocoo()
        out = np.full(labels.size, -1)
        numbers = {each: i for i, each in enumerate(dict.fromkeys(rows.coords[1].tolist()))}
        for row, block in zip(*rows.coords, strict=True):
            out[row] = numbers[int(block)]
        return out.tolist()

    @property
    def rectangles(self) -> list[Shape]:
        """Shapes of the tables whose rows keep equal counts."""
        return [r.table.shape for r in self.solution.ledger.rectangles]


def found(function: Callable[..., Tensor], *shapes: Shape) -> Found:
    """Analyse a function of operands of these shapes."""
    return Found(study(Operands(function, shapes), torch.tensor(2.0)))


def own(place: str, size: int) -> list[str | None]:
    """Every position of a dimension for itself."""
    return [f"{place}[{i}]" for i in range(size)]


def whole(size: int) -> list[str | None]:
    """Every position stays."""
    return [None] * size
