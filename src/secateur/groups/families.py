"""From classes to channel groups: which channels are chosen among each other, and in which cells equal numbers must go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import gcd

import numpy as np

from secateur.groups.fields import NONE, Labels
from secateur.groups.solve import Mask, Solution
from secateur.groups.unevenness import Count, Unevenness, connected, uneven_blocks, uneven_channels

UNBALANCED = "its rows hold channels of unequal structure, so no equal number can go from each"
EXHAUSTED = "equal numbers must go from each of its rows, and the smallest step would already take all of some"
SINGLE = "all of it would go together, and something must stay"


@dataclass(frozen=True, eq=False)
class Family:
    """Classes that are chosen among each other, the cell of each, and how many of each cell go in one step."""

    classes: Labels
    cells: Labels
    take: tuple[int, ...]
    reason: str | None = None


def channel_families(solution: Solution, writers: Labels) -> list[Family]:
    """Families of single channels; ``writers`` numbers the places that make each class."""
    classes = np.flatnonzero(solution.slotted & ~solution.is_block)
    uneven = uneven_channels(solution, classes)
    component = np.array([uneven.component[counts[0][0]] if counts else NONE for counts in uneven.counts])[uneven.signature[classes]]
    tabled, free = classes[component != NONE], classes[component == NONE]
    families = [family for members in alike(tabled, component[component != NONE]) for family in _balanced(members, uneven)]
    for frozen in (False, True):
        some = free[solution.frozen[free] == frozen]
        families += [_free(members, solution) for members in alike(some, writers[some])]
    return families


def block_families(solution: Solution) -> list[Family]:
    """Families of whole blocks: those that are rows of one table."""
    seen: set[bytes] = set()
    wanted = solution.prunable_blocks
    uneven = uneven_blocks(solution, wanted)
    families: list[Family] = []
    for classes in _rows_of_tables(solution, wanted):
        pattern = np.unique(solution.inside[:, classes].tocoo().coords[0]).tobytes()
        if pattern not in seen:
            seen.add(pattern)
            families += _balanced(classes, uneven)
    return families


def _rows_of_tables(solution: Solution, wanted: Mask) -> Iterator[Labels]:
    heads = [np.unique(solution.classes[r.heads]) for r in solution.ledger.rectangles if r.heads is not None]
    links = [(int(a), int(b)) for row in heads for a, b in pairwise(row)]
    component = connected(solution.count, links)
    rows: dict[int, set[int]] = defaultdict(set)
    for row in heads:
        rows[int(component[row[0]])] |= set(row[wanted[row]].tolist())
    for found in rows.values():
        if found:
            yield np.array(sorted(found))


def _free(classes: Labels, solution: Solution) -> Family:
    reason = solution.reasons.get(int(classes[0])) if solution.frozen[classes[0]] else None
    text = (SINGLE if classes.size == 1 else None) if reason is None else str(reason)
    return Family(classes, np.zeros(classes.size, dtype=np.int64), (1,), text)


def _balanced(classes: Labels, uneven: Unevenness) -> list[Family]:
    """Split by the tables that classes lie in where each part can be cut evenly alone, else keep them together."""
    signatures, kind = np.unique(uneven.signature[classes], return_inverse=True)
    tables = [tuple(table for table, _ in uneven.counts[each]) for each in signatures.tolist()]
    number = {found: i for i, found in enumerate(dict.fromkeys(tables))}
    families = [_even_family(part, uneven) for part in alike(classes, np.array([number[found] for found in tables])[kind])]
    if all(f.reason != UNBALANCED for f in families):
        return families
    return [_even_family(classes, uneven)]


def _even_family(classes: Labels, uneven: Unevenness) -> Family:
    signatures, cells = numbered(uneven.signature[classes])
    kinds = [uneven.counts[each] for each in signatures.tolist()]
    sizes = np.bincount(cells)
    for take in (np.ones_like(sizes), sizes // reduce(gcd, sizes.tolist())):
        if _is_even(kinds, take):
            return Family(classes, cells, tuple(take.tolist()), _exhausted(sizes, take))
    return Family(classes, cells, (1,) * len(kinds), UNBALANCED)


def _exhausted(sizes: Labels, take: Labels) -> str | None:
    """Why not even one step can be taken, if it cannot."""
    if (sizes > take).all():
        return None
    return SINGLE if sizes.sum() == 1 else EXHAUSTED


def _is_even(kinds: Sequence[tuple[Count, ...]], take: Labels) -> bool:
    totals: dict[int, Labels] = {}
    for kind, weight in zip(kinds, take.tolist(), strict=True):
        for table, counts in kind:
            totals[table] = totals.get(table, 0) + weight * counts
    return all(bool((t == t[0]).all()) for t in totals.values())


def numbered(values: Labels) -> tuple[Labels, Labels]:
    """The different values in the order in which each comes first, and for each value its number in that order."""
    different, first, number = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return different[order], np.argsort(order)[number]


def alike(things: Labels, keys: Labels) -> list[Labels]:
    """The things of one key, for each key in the order in which it comes first."""
    different, number = numbered(keys)
    order = np.argsort(number, kind="stable")
    return np.split(things[order], np.cumsum(np.bincount(number, minlength=len(different)))[:-1]) if len(different) else []
