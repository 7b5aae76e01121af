"""Tables whose rows must keep equal counts, and the channels and blocks that take more from one row than from another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from secateur.groups.distinct import distinct_rows
from secateur.groups.fields import NONE, Labels
from secateur.groups.ledger import Rectangle
from secateur.groups.solve import Mask, Solution, binary, pattern

Count = tuple[int, Labels]
"""A table, and how many positions of each of its rows go with a class."""

Counted = tuple[int, Labels, Labels]
"""A table, some classes, and for each of them how many positions of each row of the table go with it: ``(classes, rows)``."""


@dataclass(frozen=True, eq=False)
class Unevenness:
    """In which tables, and how, each class counts differently from row to row."""

    signature: Labels
    """A number for each class: classes of one number count alike in the same tables, those of 0 count evenly everywhere."""
    counts: tuple[tuple[Count, ...], ...]
    """What each of these numbers stands for."""
    component: Labels
    """Tables that share a class are one component."""

    @classmethod
    def of(cls, solution: Solution, found: Iterable[Counted]) -> Unevenness:
        """Tell classes apart by each table in turn."""
        signature = np.zeros(solution.count, dtype=np.int64)
        counts: list[tuple[Count, ...]] = [()]
        links = []
        for table, classes, rows in found:
            distinct, kind = distinct_rows(rows)
            pairs, place = np.unique(signature[classes] * len(distinct) + kind, return_inverse=True)
            signature[classes] = len(counts) + place
            for before, row in zip(*(part.tolist() for part in np.divmod(pairs, len(distinct))), strict=True):
                links += [(table, other) for other, _ in counts[before][-1:]]
                counts.append((*counts[before], (table, distinct[row])))
        return cls(signature, tuple(counts), connected(len(solution.ledger.rectangles), links))


def uneven_channels(solution: Solution, classes: Labels) -> Unevenness:
    """Single channels that stand in some rows of a table more often than in others; one that is all of a block takes it along."""
    wanted = np.zeros(solution.count, dtype=bool)
    wanted[classes] = True
    wanted &= ~solution.frozen
    tables = enumerate(solution.ledger.rectangles)
    return Unevenness.of(solution, ((n, *_uneven_classes(solution, each, wanted)) for n, each in tables if len(each.table) > 1))


def _uneven_classes(solution: Solution, rectangle: Rectangle, wanted: Mask) -> tuple[Labels, Labels]:
    height, width = rectangle.table.shape
    classes = np.where(rectangle.table == NONE, 0, solution.classes[rectangle.table])
    hit = (rectangle.table != NONE) & wanted[classes]
    local, inverse = np.unique(classes[hit], return_inverse=True)
    cells = inverse * height + np.nonzero(hit)[0]
    counts = np.bincount(cells, minlength=local.size * height).reshape(local.size, height)
    whole = counts == width
    if rectangle.heads is not None and whole.any():
        dying = whole & (local[:, None] == solution.only_inside[solution.classes[rectangle.heads]])
        uneven = _uneven_columns(counts.T, dying.T)
    else:
        uneven = (counts != counts[:, :1]).any(1)
    return local[uneven], counts[uneven]


def uneven_blocks(solution: Solution, wanted: Mask) -> Unevenness:
    """Whole blocks with which more goes of some rows of a table than of others; a row that goes as a whole is no matter."""
    return Unevenness.of(solution, _uneven_losses(solution, np.flatnonzero(wanted)))


def _uneven_losses(solution: Solution, blocks: Labels) -> Iterator[Counted]:
    tables = [(r.table, np.full(len(r.table), NONE) if r.heads is None else r.heads) for r in solution.ledger.rectangles]
    if not tables or not blocks.size:
        return
    start = np.cumsum([0, *(len(table) for table, _ in tables)])
    row = np.repeat(np.arange(start[-1]), np.concatenate([np.full(len(t), t.shape[1]) for t, _ in tables]))
    labels = np.concatenate([table.ravel() for table, _ in tables])
    losses = pattern(row, np.arange(row.size), (int(start[-1]), row.size)) @ _going(solution, labels, blocks)
    dying = _going(solution, np.concatenate([heads for _, heads in tables]), blocks)
    losses = sparse.csr_array(losses - losses.multiply(dying))
    for number in np.unique(np.searchsorted(start, losses.nonzero()[0], side="right") - 1).tolist():
        rows = slice(int(start[number]), int(start[number + 1]))
        counts = losses[rows].toarray()
        uneven = _uneven_columns(counts, dying[rows].toarray() > 0)
        yield number, blocks[uneven], counts.T[uneven]


def _going(solution: Solution, labels: Labels, blocks: Labels) -> sparse.csr_array:
    """Which labels go with which blocks: ``(labels, blocks)``."""
    shape = (labels.size, blocks.size)
    real = np.flatnonzero(labels != NONE)
    column = np.full(solution.count, NONE)
    column[blocks] = np.arange(blocks.size)
    own = column[solution.classes[labels[real]]]
    threads = pattern(real, solution.threads[labels[real]], (labels.size, solution.belongs.shape[0]))
    return binary(threads @ solution.inside[:, blocks] + pattern(real[own != NONE], own[own != NONE], shape))


def _uneven_columns(losses: Labels, dying: Mask) -> Mask:
    """Which columns hold unequal numbers in the rows that live."""
    most = np.where(dying, 0, losses).max(0)
    least = np.where(dying, most, losses).min(0)
    return np.asarray(least != most)


def connected(count: int, links: list[tuple[int, int]]) -> Labels:
    """The component of each of ``count`` things, some of which are linked."""
    if not count:
        return np.zeros(0, dtype=np.int64)
    pairs = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
