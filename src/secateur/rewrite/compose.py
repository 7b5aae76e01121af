"""Two cuts, one after the other, as one cut of the dense model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.capture import CONSTANT_PREFIX
from secateur.errors import RewriteError
from secateur.groups import ChannelGroup
from secateur.groups.solve import Mask
from secateur.plan import Prune
from secateur.rewrite.cut import Cut
from secateur.rewrite.planned import planned_cut
from secateur.rewrite.transfer import cut_where


def compose(first: Cut, second: Cut) -> Cut:
    """The cut of the dense model that leaves what a second cut leaves of the model that a first one left.

    Both know the same weights by name: the positions that the second keeps are looked up among those that the first one kept.
    Raises :class:`RewriteError` if no choice of channels of the dense model leaves the same.
    """
    wanted = {}
    for (name, dim), labels in first.solution.slot_labels.items():
        small = second.solution.slot_labels.get((name, dim))
        if small is not None and not name.startswith(CONSTANT_PREFIX):
            wanted[name, dim] = _within(first.keeps(labels), second.keeps(small), name).ravel()
    return cut_where(first.solution, wanted)


def _within(outer: Mask, inner: Mask, name: str) -> Mask:
    """What stays of the positions of ``outer`` that are kept, as a mask over all of them."""
    if int(outer.sum()) != inner.size:
        raise RewriteError(f"{name} has {inner.size} positions, where the first cut leaves {int(outer.sum())}")
    kept = outer.copy()
    kept[outer] = inner.ravel()
    return kept


def edits_of(cut: Cut, groups: Sequence[ChannelGroup]) -> tuple[Prune, ...]:
    """The edits that make a cut; :class:`RewriteError` if it removes what belongs to no group."""
    removed = [(group, np.flatnonzero(cut.dead[group.classes])) for group in groups if group.prunable]
    edits = tuple(Prune(group.name, tuple(gone.tolist()), group.size, group.kind) for group, gone in removed if gone.size)
    if not np.array_equal(planned_cut(cut.solution, groups, edits).kept, cut.kept):
        raise RewriteError("what both cuts remove together belongs to no channels that a plan could name")
    return edits
