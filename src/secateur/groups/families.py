"""From classes to channel groups: which channels are chosen among each other, and in which cells equal numbers must go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import gcd

import numpy as np

from secateur.groups.fields import Labels
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
    parts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for each in classes.tolist():
        parts[tuple(number for number, _ in uneven.of_class.get(each, ()))].append(each)
    families = [_even_family(np.array(part), uneven) for part in parts.values()]
    if all(f.reason != UNBALANCED for f in families):
        return families
    return [_even_family(classes, uneven)]


def _even_family(classes: Labels, uneven: Unevenness) -> Family:
    signatures = [uneven.of_class.get(c, ()) for c in classes.tolist()]
    kinds = {s: i for i, s in enumerate(dict.fromkeys(signatures))}
    cells = np.array([kinds[s] for s in signatures])
    sizes = np.bincount(cells)
    for take in (np.ones_like(sizes), sizes // reduce(gcd, sizes.tolist())):
        if _is_even(list(kinds), take, uneven):
            return Family(classes, cells, tuple(take.tolist()), _exhausted(sizes, take))
    return Family(classes, cells, (1,) * len(kinds), UNBALANCED)


def _exhausted(sizes: Labels, take: Labels) -> str | None:
    """Why not even one step can be taken, if it cannot."""
    if (sizes > take).all():
        return None
    return SINGLE if sizes.sum() == 1 else EXHAUSTED


def _is_even(kinds: Sequence[tuple[Count, ...]], take: Labels, uneven: Unevenness) -> bool:
    totals: dict[int, Labels] = {}
    for kind, weight in zip(kinds, take.tolist(), strict=True):
        for number, counts in kind:
            totals[number] = totals.get(number, 0) + weight * uneven.rows[number, counts]
    return all(bool((t == t[0]).all()) for t in totals.values())
