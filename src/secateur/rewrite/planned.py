"""The cut that a plan's edits ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.errors import PlanError
from secateur.groups import ChannelGroup, Solution
from secateur.plan import Prune
from secateur.rewrite.cut import Cut
from secateur.rewrite.verify import offenders


def planned_cut(solution: Solution, groups: Sequence[ChannelGroup], edits: Sequence[Prune]) -> Cut:
    """Find what the edits of a plan remove; :class:`PlanError` if this model does not have it, or cannot lose it."""
    known = {group.name: group for group in groups}
    dead = np.zeros(solution.count, dtype=bool)
    for edit in edits:
        group = known.get(edit.group)
        if group is None or group.size != edit.size:
            text = f"The plan cuts {edit.group!r} with {edit.size} channels, which this model does not have."
            raise PlanError(f"{text} Make the plan anew.")
        if group.kind != edit.kind:
            raise PlanError(f"The plan cuts {edit.kind} of {edit.group!r}, which holds {group.kind}.")
        if not group.prunable:
            raise PlanError(f"The plan cuts {edit.group!r}, which stays whole: {group.reason}")
        dead[group.classes[list(edit.remove)]] = True
    cut = Cut(solution, dead)
    if (found := offenders(cut, groups)) is not None:
        raise PlanError(f"The plan cannot be carried out: {found[0]}. It comes from {', '.join(sorted(found[1]))}.")
    return cut
