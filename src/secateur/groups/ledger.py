"""What the rules find out, written down: meetings, frozen labels, blocks, rows of equal length, and roles.

Rules only append here. The classes come out of all of it at once, in :mod:`secateur.groups.solve`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from secateur.groups.distinct import distinct_rows
from secateur.groups.fields import NONE, Field, Fields, Labels, compact, hierarchy, rows

Role = Literal["writes", "reads", "carries", "dot", "mixed", "joined"]


@dataclass(frozen=True)
class Reason:
    """Why labels stay: what holds them, and the node where it was seen."""

    text: str
    node: str
    module: str

    def __str__(self) -> str:
        place = f"node {self.node}" + (f", module {self.module}" if self.module else "")
        return f"{self.text} ({place})"


@dataclass(frozen=True)
class Rectangle:
    """A table of labels in which the rows that live must keep equally many."""

    table: Labels
    heads: Labels | None
    """The block label of each row; without one the row must live."""
    node: str


@dataclass
class Ledger:
    """All relations between labels that one walk through the graph found."""

    count: int = 0
    one_to_one: list[tuple[Labels, Labels]] = field(default_factory=list)
    one_to_many: list[tuple[Labels, Labels]] = field(default_factory=list)
    inherits: list[tuple[Labels, Labels]] = field(default_factory=list)
    """Pairs (heir, source): a label that met only this one partner belongs to the partner's blocks too."""
    members: list[tuple[Labels, Labels]] = field(default_factory=list)
    """Pairs (block label, label inside it)."""
    frozen: list[tuple[Labels, Reason]] = field(default_factory=list)
    roles: list[tuple[Labels, Role, str]] = field(default_factory=list)
    rectangles: list[Rectangle] = field(default_factory=list)
    renormalising: dict[str, str] = field(default_factory=dict)
    """Nodes that take statistics over labelled dimensions, with the operator's name."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Nodes whose operator has no rule, with the operator's name."""
    grouped: dict[str, Labels] = field(default_factory=dict)
    """Labels ``(groups, channels of a group)`` of dimension 1 of grouped convolution weights, by weight."""
    orphans: set[tuple[str, int]] = field(default_factory=set)
    """Dimensions of weights that are cut through ``grouped`` or through dimension 0, and whose own labels count for nothing."""
    place: Reason = field(default_factory=lambda: Reason("", "", ""))
    """The node at work: reasons are written with its name."""
    _known: set[tuple[bytes, bytes]] = field(default_factory=set)

    def fresh(self, size: int) -> Labels:
        """Labels that nobody has yet."""
        start, self.count = self.count, self.count + size
        return np.arange(start, self.count, dtype=np.int64)

    def unite(self, a: Labels, b: Labels) -> None:
        """State that labels which meet at one position, after broadcasting, go together."""
        if a is b:
            return
        x, y = (v.ravel() for v in np.broadcast_arrays(a, b))
        self._hold_partners_of_none(x, y)
        real = (x != NONE) & (y != NONE) & (x != y)
        if not real.any():
            return
        x, y = x[real], y[real]
        if _distinct(x) and _distinct(y):
            self.one_to_one.append((x, y))
            return
        x, y = _unique_pairs(x, y, self.count)
        only_x, only_y = _alone(x), _alone(y)
        if only_x.all() and only_y.all():
            self.one_to_one.append((x, y))
            return
        self.one_to_many.append((x, y))
        self.inherits.append((x[only_x], y[only_x]))
        self.inherits.append((y[only_y], x[only_y]))

    def _hold_partners_of_none(self, x: Labels, y: Labels) -> None:
        for mine, other in ((x, y), (y, x)):
            held = (other == NONE) & (mine != NONE)
            if held.any():
                self.freeze(np.unique(mine[held]), "meets positions that always stay")

    def freeze(self, labels: Labels, text: str) -> None:
        """State that labels stay, and why."""
        labels = labels.ravel()
        if labels.size:
            self.frozen.append((labels, Reason(text, self.place.node, self.place.module)))

    def holds(self, labels: Labels) -> bool:
        """Whether all of these labels were said to stay."""
        left = np.unique(labels)
        for held, _ in self.frozen:
            if not left.size:
                break
            left = left[~np.isin(left, held)]
        return not left.size

    def freeze_fields(self, fields: Fields, text: str) -> None:
        """State that all labels of these fields stay."""
        for each in fields:
            self.freeze(each.labels, text)

    def pin(self, against: Labels, dims: frozenset[int], shape: tuple[int, ...], text: str) -> None:
        """State that a label stays in every row that lives, since it meets an operand without labels along ``dims``."""
        size = [shape[d] if d in dims else 1 for d in range(len(shape))]
        labels = self.fresh(int(np.prod(size))).reshape(size)
        self.freeze(labels, text)
        self.unite(against, labels)

    def contain(self, block: Labels, inside: Labels) -> None:
        """State that a block consists of the labels at its positions."""
        b, u = (v.ravel() for v in np.broadcast_arrays(block, inside))
        real = (b != NONE) & (u != NONE)
        self.members.append((b[real], u[real]))

    def note(self, fields: Fields, dims: frozenset[int], role: Role) -> None:
        """Write down what part labels along some dimensions play at this node."""
        for each in fields:
            if each.dims & dims and not each.block:
                self.roles.append((each.labels.ravel(), role, self.place.node))

    def complete(self, fields: Fields) -> Fields:
        """Add a block field for every prefix of a field over several dimensions that has none yet."""
        out = list(fields)
        for each in sorted((f for f in fields if len(f.dims) > 1), key=lambda f: f.block):
            order = hierarchy(each, out)
            for length in range(len(order) - 1, 0, -1):
                prefix = frozenset(order[:length])
                if not any(f.block and f.dims == prefix for f in out):
                    out.append(self._block(each, prefix, out))
        return tuple(f for f in out if f.dims)

    def _block(self, inside: Field, dims: frozenset[int], fields: list[Field]) -> Field:
        """A label for each row of labels along the other dimensions; equal rows get one label."""
        shape = [inside.labels.shape[d] if d in dims else 1 for d in range(inside.labels.ndim)]
        others = [d for d in range(inside.labels.ndim) if d not in dims]
        table = inside.labels.transpose([*sorted(dims), *others]).reshape(int(np.prod(shape)), -1)
        first, inverse = distinct_rows(table)
        block = Field(compact(self.fresh(len(first))[inverse].reshape(shape)), block=True)
        for each in fields:
            if dims < each.dims:
                self.contain(block.labels, each.labels)
        return block

    def require_rows(self, fields: Fields) -> None:
        """Write down the tables in which rows must keep equal counts: every field over two or more dimensions."""
        for each in fields:
            if len(each.dims) < 2:
                continue
            order = hierarchy(each, fields)
            heads = next((f for f in fields if f.block and f.dims == frozenset(order[:-1])), None)
            table = rows(each, order)
            head_labels = None if heads is None else heads.labels.transpose([*order, *_rest(order, heads)]).ravel()
            key = (table.tobytes(), b"" if head_labels is None else head_labels.tobytes())
            if key not in self._known:
                self._known.add(key)
                self.rectangles.append(Rectangle(table, head_labels, self.place.node))


def _rest(order: list[int], field_: Field) -> list[int]:
    return [d for d in range(field_.labels.ndim) if d not in order]


def _distinct(x: Labels) -> bool:
    if x.size > 1 and (x[1:] > x[:-1]).all():
        return True
    return np.unique(x).size == x.size


def _unique_pairs(x: Labels, y: Labels, count: int) -> tuple[Labels, Labels]:
    keys = np.unique(x * count + y)
    return keys // count, keys % count


def _alone(x: Labels) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] == 1)
