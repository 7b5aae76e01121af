"""What a choice of dead classes leaves of every tensor: masks, kept positions and new shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx

from secateur.capture.capture import Fact
from secateur.errors import RewriteError
from secateur.groups.fields import NONE, Field, Fields, Labels, hierarchy, rows
from secateur.groups.solve import Mask, Solution


@dataclass(frozen=True, eq=False)
class Cut:
    """A solution together with the classes that go."""

    solution: Solution
    dead: Mask

    @cached_property
    def kept(self) -> Mask:
        """Which labels stay."""
        return self.solution.kept(self.dead)

    def keeps(self, labels: Labels) -> Mask:
        """Which of these labels stay; ``NONE`` stays."""
        if not self.kept.size:
            return np.ones(labels.shape, dtype=bool)
        return np.asarray(self.kept[labels] | (labels == NONE))

    def fields(self, node: fx.Node) -> Fields:
        """Fields of a node with one tensor."""
        return self.solution.walk.tensor_fields(node)

    def touches(self, fields: Fields) -> bool:
        """Whether any position of a tensor with these fields goes."""
        return any(not self.keeps(f.labels).all() for f in fields)

    def mask(self, fields: Fields) -> Mask | None:
        """Kept positions of a tensor, in broadcastable shape; ``None`` if all stay."""
        out: Mask | None = None
        for field in fields:
            kept = self.keeps(field.labels)
            if not kept.all():
                out = kept if out is None else out & kept
        return out

    def shape(self, fields: Fields, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The new shape of a tensor."""
        new: dict[int, int] = {}
        for field in fields:
            if not field.dims:
                continue
            order = hierarchy(field, fields)
            size = self._count(field, order)
            if new.setdefault(order[-1], size) != size:
                raise RewriteError(
                    f"two fields give dimension {order[-1]} of a tensor of shape {shape} the sizes {new[order[-1]]} and {size}"
                )
        return tuple(new.get(d, size) for d, size in enumerate(shape))

    def _count(self, field: Field, order: list[int]) -> int:
        counts = self.keeps(rows(field, order)).sum(1)
        living = counts[counts > 0]
        if living.size == 0 or (living != living[0]).any():
            raise RewriteError(f"rows of one tensor keep unequal numbers of positions: {sorted(set(counts.tolist()))}")
        return int(living[0])

    def along(self, fields: Fields, dim: int, size: int) -> Mask:
        """Kept positions along one dimension; rows that live must agree."""
        kept = np.ones(size, dtype=bool)
        for field in fields:
            if dim in field.dims:
                table = self._rows(field, fields, dim, size)
                living = table[table.any(1)]
                if living.size == 0 or (living != living[0]).any():
                    raise RewriteError("rows keep different positions along a dimension that is cut by position")
                kept = kept & living[0]
        return kept

    def before(self, fields: Fields, dim: int, size: int, bound: int) -> int:
        """How many positions stay before a bound along a dimension; rows that live must agree."""
        counts = {bound}
        for field in fields:
            if dim in field.dims:
                table = self._rows(field, fields, dim, size)
                found = set(table[table.any(1)][:, :bound].sum(1).tolist())
                counts = found if counts == {bound} else counts & found
        if len(counts) != 1:
            raise RewriteError(f"rows keep different numbers of positions before {bound}")
        return int(counts.pop())

    def _rows(self, field: Field, fields: Fields, dim: int, size: int) -> Mask:
        """Kept positions along one dimension, a row for each position of the outer ones; an outer position stays if anything in it does."""
        order = hierarchy(field, fields)
        inner = tuple(order[order.index(dim) + 1 :])
        kept: Mask = np.asarray(self.keeps(field.labels).any(axis=inner, keepdims=True))
        return np.moveaxis(kept, dim, -1).reshape(-1, size)

    def node_shape(self, node: fx.Node) -> tuple[int, ...]:
        """The new shape of a node's tensor."""
        fact: Any = node.meta["fact"]
        assert isinstance(fact, Fact)
        return self.shape(self.fields(node), fact.shape)

    def slots(self) -> Iterable[tuple[str, int, Mask]]:
        """Kept positions of each dimension of each weight that loses something; of grouped weights a table for dimension 1."""
        for (name, dim), labels in self.solution.slot_labels.items():
            kept = self.keeps(labels)
            if not kept.all():
                yield name, dim, kept

    def living_rows(self, labels: Labels, groups: int) -> int:
        """How many of ``groups`` equal runs of labels keep anything."""
        return int(self.keeps(labels.reshape(groups, -1)).any(1).sum())
