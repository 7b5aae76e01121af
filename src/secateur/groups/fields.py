"""Fields: which label each element of a tensor carries, kept compact.

A *field* is an integer array of the tensor's rank, of size 1 along every dimension in which the label does not change.
An element stays if the labels of all fields of its tensor stay. Label ``NONE`` stays always.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
NONE = -1


@dataclass(frozen=True, eq=False)
class Field:
    """One label for each element of a tensor; ``block`` where a label stands for a whole row of others.

    A ``pliant`` field labels one dimension of a tensor that can be made at any size there, by no choice of its own: it takes
    the labels that it meets.
    """

    labels: Labels
    block: bool = False
    pliant: bool = False

    @cached_property
    def dims(self) -> frozenset[int]:
        """The dimensions along which the label changes."""
        return frozenset(d for d, size in enumerate(self.labels.shape) if size > 1)

    def laid(self, labels: Labels) -> Field:
        """The same kind of field with its labels laid out in another way."""
        return Field(labels, self.block, self.pliant)

    def with_labels(self, labels: Labels) -> Field:
        """The same kind of field with other labels, made compact."""
        return self.laid(compact(labels))


Fields = tuple[Field, ...]


def row_along(fields: Iterable[Field], dim: int) -> Field | None:
    """The field that labels one dimension alone: that of its channels, or of whole blocks where no channels are left."""
    return min((f for f in fields if f.dims == {dim}), key=lambda f: f.block, default=None)


def compact(labels: Labels) -> Labels:
    """Reduce to size 1 every dimension along which all labels are equal."""
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = labels.take([0], axis=dim)
            if (labels == first).all():
                labels = first
    return labels


def along(labels: Labels, dim: int, rank: int) -> Labels:
    """A row of labels laid along one dimension of a tensor of that rank."""
    shape = [1] * rank
    shape[dim] = -1
    return labels.reshape(shape)


def aligned(field: Field, rank: int) -> Field:
    """The field with leading dimensions of size 1 added, as broadcasting does."""
    labels = field.labels
    return field.laid(labels.reshape((1,) * (rank - labels.ndim) + labels.shape))


def permuted(field: Field, order: Sequence[int]) -> Field:
    """The field of a tensor whose dimensions are put in another order."""
    return field.laid(field.labels.transpose(order))


def hierarchy(field: Field, fields: Iterable[Field]) -> list[int]:
    """The dimensions of a field from outer to inner: those that block fields name first, fewest dimensions first."""
    order: list[int] = []
    blocks = sorted((f.dims for f in fields if f.block and f.dims < field.dims), key=len)
    for dims in [*blocks, field.dims]:
        order += sorted(dims - set(order))
    return order


def rows(field: Field, order: Sequence[int]) -> Labels:
    """The labels as a table: one row for each position of the outer dimensions, the innermost dimension along it."""
    rest = [d for d in range(field.labels.ndim) if d not in order]
    return field.labels.transpose([*order, *rest]).reshape(-1, field.labels.shape[order[-1]])


def regroup(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Factor a reshape into the smallest runs of dimensions, old and new, that hold equally many elements."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if left else 1), (new[j] if right else 1)
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                a *= old[i]
                left.append(i)
                i += 1
            else:
                b *= new[j]
                right.append(j)
                j += 1
        runs.append((left, right))
    return runs


def reshaped(field: Field, old: Sequence[int], new: Sequence[int]) -> Field:
    """The field of a tensor after a reshape: the labels go through the same movement, on as few elements as will do."""
    wide, shape = list(field.labels.shape), [1] * len(new)
    for left, right in regroup(old, new):
        if any(field.labels.shape[d] > 1 for d in left):
            for d in left:
                wide[d] = old[d]
            for d in right:
                shape[d] = new[d]
    return field.with_labels(np.broadcast_to(field.labels, wide).reshape(shape))
