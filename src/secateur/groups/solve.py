"""From relations to classes: what is removed together, what stays, and what a choice leaves of every label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from secateur.groups.fields import NONE, Labels
from secateur.groups.ledger import Ledger, Reason
from secateur.groups.walk import Walk

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Solution:
    """The classes of all labels.

    A *thread* is one channel seen in several tensors (one-to-one meetings alone); a *class* is what is removed together
    (all meetings). A label is kept if its class lives and no block of its thread is dead.
    """

    walk: Walk
    classes: Labels
    """Class of each label."""
    threads: Labels
    """Thread of each label."""
    belongs: sparse.csr_array
    """Which blocks (by class) each thread lies in: ``(threads, classes)``."""

    @cached_property
    def inside(self) -> sparse.csc_array:
        """The same, to be asked block by block."""
        return self.belongs.tocsc()

    @property
    def ledger(self) -> Ledger:
        """The relations that this was solved from."""
        return self.walk.ledger

    @cached_property
    def count(self) -> int:
        """Number of classes."""
        return int(self.classes.max(initial=-1)) + 1

    @cached_property
    def frozen(self) -> Mask:
        """Classes in which a label must stay."""
        return self._any_class(self._frozen_labels)

    @cached_property
    def _frozen_labels(self) -> Mask:
        mask = np.zeros(self.ledger.count, dtype=bool)
        for labels, _ in self.ledger.frozen:
            mask[labels[labels != NONE]] = True
        return mask

    @cached_property
    def reasons(self) -> dict[int, Reason]:
        """The first reason why each frozen class stays."""
        out: dict[int, Reason] = {}
        for labels, reason in self.ledger.frozen:
            for each in np.unique(self.classes[labels[labels != NONE]]):
                out.setdefault(int(each), reason)
        return out

    @cached_property
    def slotted(self) -> Mask:
        """Classes that have a place in some weight."""
        mask = np.zeros(self.count, dtype=bool)
        for labels in self.slot_labels.values():
            mask[self.classes[labels]] = True
        return mask

    @cached_property
    def slot_labels(self) -> dict[tuple[str, int], Labels]:
        """The labels in force of each dimension of each weight; of grouped convolutions ``(groups, channels)`` for dimension 1."""
        plain = {k: v for k, v in self.walk.slots.items() if k not in self.ledger.orphans}
        return plain | {(name, 1): labels for name, labels in self.ledger.grouped.items()}

    @cached_property
    def prunable(self) -> Mask:
        """Classes of single channels that may go."""
        return np.asarray(~self.frozen & self.slotted & ~self.is_block)

    @cached_property
    def is_block(self) -> Mask:
        """Classes of block labels."""
        mask = np.zeros(self.count, dtype=bool)
        for blocks, _ in self.ledger.members:
            mask[self.classes[blocks]] = True
        return mask

    @cached_property
    def prunable_blocks(self) -> Mask:
        """Blocks that may go whole: no thread inside them holds a frozen label, and they cut some weight."""
        thread_frozen = np.zeros(self.belongs.shape[0], dtype=bool)
        thread_frozen[self.threads[self._frozen_labels]] = True
        thread_slotted = np.zeros(self.belongs.shape[0], dtype=bool)
        for labels in self.slot_labels.values():
            thread_slotted[self.threads[labels]] = True
        held = self.belongs.T @ thread_frozen.astype(np.int64) > 0
        cuts = self.belongs.T @ thread_slotted.astype(np.int64) > 0
        return np.asarray(self.is_block & ~self.frozen & ~held & cuts)

    @cached_property
    def only_inside(self) -> Labels:
        """The class of single channels that is all that a removable block holds; ``NONE`` where there are several, or none."""
        of_thread = np.zeros(self.belongs.shape[0], dtype=np.int64)
        of_thread[self.threads] = self.classes
        thread, block = self.belongs.tocoo().coords
        channel = of_thread[thread]
        single = ~self.is_block[channel]
        ends = np.full((2, self.count), np.iinfo(np.int64).max)
        np.minimum.at(ends[0], block[single], channel[single])
        np.minimum.at(ends[1], block[single], -channel[single])
        return np.where((ends[0] == -ends[1]) & self.prunable_blocks, ends[0], NONE)

    def kept(self, dead: Mask) -> Mask:
        """Which labels stay when the classes in ``dead`` go; a block with nothing left in it goes too."""
        gone = self.belongs @ dead.astype(np.int64) > 0
        kept = ~(dead[self.classes] | gone[self.threads])
        empty = self._filled & ~self._holds(kept)
        return np.asarray(kept & ~empty[self.classes])

    @cached_property
    def _filled(self) -> Mask:
        """Blocks with single channels inside."""
        return self.is_block & self._holds(np.ones(self.ledger.count, dtype=bool))

    def _holds(self, labels: Mask) -> Mask:
        """Blocks in which some of these labels are single channels."""
        living = np.zeros(self.belongs.shape[0], dtype=np.int64)
        living[self.threads[labels & ~self.is_block[self.classes]]] = 1
        return np.asarray(self.belongs.T @ living > 0)

    def _any_class(self, mask: Mask) -> Mask:
        out = np.zeros(self.count, dtype=bool)
        out[self.classes[mask]] = True
        return out


def solve(walk: Walk) -> Solution:
    """Join what meets, and let labels inherit the blocks of their partners."""
    ledger = walk.ledger
    threads = _components(ledger.count, ledger.one_to_one)
    one_to_one = [*ledger.one_to_one, *_shared_rows(ledger, threads)]
    threads = _components(ledger.count, one_to_one)
    classes = _components(ledger.count, [*one_to_one, *ledger.one_to_many])
    return Solution(walk, classes, threads, _blocks_of_threads(ledger, threads, classes))


def _shared_rows(ledger: Ledger, threads: Labels) -> list[tuple[Labels, Labels]]:
    """Blocks that are the same rows of channels, seen at two operators, go together."""
    first: dict[tuple[bytes, tuple[int, ...]], Labels] = {}
    found = []
    for rectangle in ledger.rectangles:
        if rectangle.heads is not None and (rectangle.table >= 0).all():
            heads = first.setdefault((threads[rectangle.table].tobytes(), rectangle.table.shape), rectangle.heads)
            if heads is not rectangle.heads:
                found.append((heads, rectangle.heads))
    return found


def _components(count: int, edges: list[tuple[Labels, Labels]]) -> Labels:
    if not count:
        return np.zeros(0, dtype=np.int64)
    x, y = _joined(edges)
    graph = sparse.coo_array((np.ones(x.size, dtype=np.int8), (x, y)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _joined(edges: list[tuple[Labels, Labels]]) -> tuple[Labels, Labels]:
    if not edges:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate([e[0] for e in edges]), np.concatenate([e[1] for e in edges])


def _blocks_of_threads(ledger: Ledger, threads: Labels, classes: Labels) -> sparse.csr_array:
    rows, columns = int(threads.max(initial=-1)) + 1, int(classes.max(initial=-1)) + 1
    blocks, inside = _joined(ledger.members)
    heirs, sources = _joined(ledger.inherits)
    belongs = pattern(threads[inside], classes[blocks], (rows, columns))
    inherit = pattern(threads[heirs], threads[sources], (rows, rows))
    own = pattern(classes[blocks], threads[blocks], (columns, rows))
    while True:
        grown = binary(belongs + inherit @ belongs + belongs @ (own @ belongs))
        if grown.nnz == belongs.nnz:
            return belongs
        belongs = grown


def pattern(rows: Labels, columns: Labels, shape: tuple[int, int]) -> sparse.csr_array:
    """A matrix of ones at these places."""
    return binary(sparse.csr_array((np.ones(rows.size, dtype=np.int64), (rows, columns)), shape=shape))


def binary(matrix: sparse.csr_array) -> sparse.csr_array:
    """The same matrix with ones for all that is not zero, changed in place."""
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
