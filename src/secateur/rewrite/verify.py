"""Check a choice before anything is rewritten: every tensor keeps something, rows keep equal counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.capture.capture import Fact
from secateur.errors import RewriteError
from secateur.groups.fields import NONE
from secateur.groups.group import ChannelGroup
from secateur.rewrite.cut import Cut


def offenders(cut: Cut, groups: Sequence[ChannelGroup]) -> tuple[str, set[str]] | None:
    """The first tensor that would be left empty or ragged, as a sentence, with the groups that cut it; ``None`` if all is well."""
    walk = cut.solution.walk
    for node in walk.capture.graph.nodes:
        fields, fact = walk.fields.get(node, ()), node.meta.get("fact")
        for field, one in zip(fields, fact, strict=True) if isinstance(fields, list) else [(fields, fact)]:
            try:
                if isinstance(one, Fact) and cut.touches(field):
                    cut.shape(field, one.shape)
            except RewriteError as error:
                labels = np.concatenate([f.labels.ravel() for f in field])
                return f"{error} (node {node.name}, module {node.meta.get('module') or 'root'})", _cutting(cut, groups, labels)
    return _ragged_rows(cut, groups)


def _ragged_rows(cut: Cut, groups: Sequence[ChannelGroup]) -> tuple[str, set[str]] | None:
    for rectangle in cut.solution.ledger.rectangles:
        counts = cut.keeps(rectangle.table).sum(1)
        alive = np.ones(counts.size, dtype=bool) if rectangle.heads is None else cut.keeps(rectangle.heads)
        living = counts[alive]
        if living.size == 0 or (living != living[0]).any() or living[0] == 0 or counts[~alive].any():
            text = f"rows would keep unequal numbers of channels: {sorted(set(counts.tolist()))} (node {rectangle.node})"
            return text, _cutting(cut, groups, rectangle.table.ravel())
    return None


def _cutting(cut: Cut, groups: Sequence[ChannelGroup], labels: np.ndarray) -> set[str]:
    labels = labels[labels != NONE]
    found = set(cut.solution.classes[labels].tolist())
    blocks = cut.solution.belongs[np.unique(cut.solution.threads[labels])]
    found |= set(blocks.indices.tolist())
    return {g.name for g in groups if any(c in found for c in g.classes[cut.dead[g.classes]].tolist())}
