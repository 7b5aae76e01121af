"""From classes to channel groups: which channels are chosen among each other, and in which cells equal numbers must go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from math import gcd

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from secateur.groups.fields import NONE, Labels
from secateur.groups.ledger import Rectangle
from secateur.groups.solve import Mask, Solution

UNBALANCED = "its rows hold channels of unequal structure, so no equal number can go from each"

Count = tuple[int, bytes]
"""A table, and how often a class stands in each of its rows."""


@dataclass(frozen=True, eq=False)
class Family:
    """Classes that are chosen among each other, the cell of each, and how many of each cell go in one step."""

    classes: Labels
    cells: Labels
    take: tuple[int, ...]
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Unevenness:
    """In which tables, and how, each class counts differently from row to row."""

    of_class: dict[int, tuple[Count, ...]]
    component: Labels
    """Tables that share a class are one component."""
    rows: dict[Count, Labels] = field(default_factory=dict)


def channel_families(solution: Solution, writers: Labels) -> list[Family]:
    """Families of single channels; ``writers`` numbers the places that make each class."""
    classes = np.flatnonzero(solution.slotted & ~solution.is_block)
    uneven = _unevenness(solution, classes, solution.ledger.rectangles)
    tabled: dict[int, list[int]] = defaultdict(list)
    free: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for each in classes.tolist():
        counts = uneven.of_class.get(each)
        if counts and not solution.frozen[each]:
            tabled[int(uneven.component[counts[0][0]])].append(each)
        else:
            free[bool(solution.frozen[each]), int(writers[each])].append(each)
    families = [family for members in tabled.values() for family in _balanced(np.array(members), uneven)]
    return [*families, *(_free(np.array(members), solution) for members in free.values())]


def block_families(solution: Solution) -> list[Family]:
    """Families of whole blocks: those that are rows of one table."""
    seen: set[bytes] = set()
    wanted = solution.prunable_blocks
    tables = [r for r in solution.ledger.rectangles if solution.is_block[solution.classes[r.table.ravel()[0]]]]
    uneven = _unevenness(solution, np.flatnonzero(wanted), tables)
    families: list[Family] = []
    for classes in _rows_of_tables(solution, wanted):
        pattern = np.unique(solution.belongs[:, classes].tocoo().coords[0]).tobytes()
        if pattern not in seen:
            seen.add(pattern)
            families += _balanced(classes, uneven)
    return families


def _rows_of_tables(solution: Solution, wanted: Mask) -> Iterator[Labels]:
    heads = [np.unique(solution.classes[r.heads]) for r in solution.ledger.rectangles if r.heads is not None]
    links = [(int(a), int(b)) for row in heads for a, b in pairwise(row)]
    component = _connected(solution.count, links)
    rows: dict[int, set[int]] = defaultdict(set)
    for row in heads:
        rows[int(component[row[0]])] |= set(row[wanted[row]].tolist())
    for found in rows.values():
        if found:
            yield np.array(sorted(found))


def _free(classes: Labels, solution: Solution) -> Family:
    reason = solution.reasons.get(int(classes[0])) if solution.frozen[classes[0]] else None
    return Family(classes, np.zeros(classes.size, dtype=np.int64), (1,), None if reason is None else str(reason))


def _unevenness(solution: Solution, classes: Labels, tables: Sequence[Rectangle]) -> Unevenness:
    wanted = np.zeros(solution.count, dtype=bool)
    wanted[classes] = True
    wanted &= ~solution.frozen
    found: dict[int, list[Count]] = defaultdict(list)
    rows: dict[Count, Labels] = {}
    links = []
    for number, table in enumerate(tables):
        for each, counts in _uneven_classes(solution, table, wanted):
            key = (number, counts.tobytes())
            rows[key] = counts
            links += [(number, other) for other, _ in found[each][-1:]]
            found[each].append(key)
    return Unevenness({k: tuple(v) for k, v in found.items()}, _connected(len(tables), links), rows)


def _uneven_classes(solution: Solution, rectangle: Rectangle, wanted: Mask) -> Iterator[tuple[int, Labels]]:
    """Classes that stand in some rows more often than in others; rows that die with a class do not count for it."""
    table = rectangle.table
    if table.shape[0] < 2:
        return
    classes = np.where(table == NONE, 0, solution.classes[table])
    hit = (table != NONE) & wanted[classes]
    if rectangle.heads is not None:
        hit &= classes != solution.classes[rectangle.heads][:, None]
    local, inverse = np.unique(classes[hit], return_inverse=True)
    cells = inverse * table.shape[0] + np.nonzero(hit)[0]
    counts = np.bincount(cells, minlength=local.size * table.shape[0]).reshape(local.size, table.shape[0])
    uneven = (counts != counts[:, :1]).any(1)
    yield from zip(local[uneven].tolist(), counts[uneven], strict=True)


def _balanced(classes: Labels, uneven: Unevenness) -> list[Family]:
    """Split by the tables that classes lie in where each part can be cut evenly alone, else keep them together."""
    parts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for each in classes.tolist():
        parts[tuple(number for number, _ in uneven.of_class.get(each, ()))].append(each)
    families = [_even_family(np.array(part), uneven) for part in parts.values()]
    if all(f.reason is None for f in families):
        return families
    return [_even_family(classes, uneven)]


def _even_family(classes: Labels, uneven: Unevenness) -> Family:
    signatures = [uneven.of_class.get(c, ()) for c in classes.tolist()]
    kinds = {s: i for i, s in enumerate(dict.fromkeys(signatures))}
    cells = np.array([kinds[s] for s in signatures])
    sizes = np.bincount(cells)
    for take in (np.ones_like(sizes), sizes // reduce(gcd, sizes.tolist())):
        if _is_even(list(kinds), take, uneven):
            return Family(classes, cells, tuple(take.tolist()))
    return Family(classes, cells, (1,) * len(kinds), UNBALANCED)


def _is_even(kinds: Sequence[tuple[Count, ...]], take: Labels, uneven: Unevenness) -> bool:
    totals: dict[int, Labels] = {}
    for kind, weight in zip(kinds, take.tolist(), strict=True):
        for number, counts in kind:
            totals[number] = totals.get(number, 0) + weight * uneven.rows[number, counts]
    return all(bool((t == t[0]).all()) for t in totals.values())


def _connected(count: int, links: list[tuple[int, int]]) -> Labels:
    if not count:
        return np.zeros(0, dtype=np.int64)
    pairs = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
