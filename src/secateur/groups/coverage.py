"""What can be cut and what stays whole, dimension by dimension, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from secateur.capture.capture import Capture, Fact
from secateur.capture.normalize.weights import computed_from
from secateur.groups.families import SINGLE
from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution


@dataclass(frozen=True)
class Dimension:
    """One dimension of one weight: how many of its positions may go, and why the others stay."""

    tensor: str
    dim: int
    size: int
    prunable: int
    reason: str | None


@dataclass(frozen=True)
class Coverage:
    """Every dimension of every weight, the operators without a rule, and the statistics that change their meaning."""

    dimensions: tuple[Dimension, ...]
    unknown: Mapping[str, str]
    """Nodes whose operator has no rule, with the operator."""
    renormalising: Mapping[str, str]
    """Nodes that average over channels, which from now on means over the kept ones, with the operator."""

    def prunable_share(self, weights: Mapping[str, float]) -> float:
        """The share of some cost of weights (parameters, MACs) that lies at positions which may go."""
        kept: dict[str, float] = dict.fromkeys((d.tensor for d in self.dimensions), 1.0)
        for each in self.dimensions:
            kept[each.tensor] *= 1 - each.prunable / each.size
        total = sum(weights.values())
        return sum(cost * (1 - kept.get(name, 1.0)) for name, cost in weights.items()) / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The coverage as plain values."""
        return {
            "dimensions": [asdict(d) for d in self.dimensions],
            "unknown": dict(self.unknown),
            "renormalising": dict(self.renormalising),
        }


def coverage(solution: Solution, groups: Sequence[ChannelGroup]) -> Coverage:
    """Account for every dimension of every weight that the graph reads, and of every parameter that it does not read."""
    prunable = {(m.tensor, m.dim): np.zeros(m.length, dtype=bool) for g in groups for m in g.members}
    reasons: dict[tuple[str, int], str] = {}
    for group in groups:
        for member in group.members:
            if group.prunable:
                prunable[member.tensor, member.dim][member.positions] = True
            elif group.reason:
                reasons.setdefault((member.tensor, member.dim), group.reason)
    dimensions = [_dimension(solution, key, prunable, reasons) for key in _every_dimension(solution)]
    dimensions += _unread(solution.walk.capture)
    return Coverage(tuple(dimensions), dict(solution.ledger.unknown), dict(solution.ledger.renormalising))


def _every_dimension(solution: Solution) -> list[tuple[str, int, int]]:
    found: dict[tuple[str, int, int], None] = {}
    for node in solution.walk.capture.graph.find_nodes(op="get_attr"):
        fact = node.meta.get("fact")
        if isinstance(fact, Fact) and (fact.dtype.is_floating_point or fact.dtype.is_complex) and 0 not in fact.shape:
            found |= dict.fromkeys((str(node.target), dim, size) for dim, size in enumerate(fact.shape))
    return list(found)


def _unread(capture: Capture) -> list[Dimension]:
    """Parameters of the model that no call reads: they stay as they are."""
    nodes = capture.graph.find_nodes(op="get_attr")
    read = {alias for node in nodes for alias in capture.tied.get(str(node.target), (str(node.target),))}
    whole = {part: str(node.target) for node in nodes for part in computed_from(node)}
    found = []
    for name, parameter in capture.model.named_parameters():
        if name not in read:
            reason = f"{whole[name]} is computed from it and stored in its place" if name in whole else "never read by forward"
            found += [Dimension(name, dim, size, 0, reason) for dim, size in enumerate(parameter.shape)]
    return found


def _dimension(
    solution: Solution, key: tuple[str, int, int], prunable: Mapping[tuple[str, int], Any], reasons: Mapping[tuple[str, int], str]
) -> Dimension:
    name, dim, size = key
    if (name, dim) in prunable:
        mask = prunable[name, dim]
        count = round(int(mask.sum()) * size / mask.size)
        reason = None if count == size else reasons.get((name, dim)) or _first_reason(solution, name, dim)
        return Dimension(name, dim, size, count, reason)
    if size == 1:
        return Dimension(name, dim, size, 0, "a dimension of size 1")
    return Dimension(name, dim, size, 0, _first_reason(solution, name, dim))


def _first_reason(solution: Solution, name: str, dim: int) -> str:
    labels = solution.walk.slots.get((name, dim))
    if labels is not None:
        if (name, dim) in solution.ledger.orphans:
            return "the input side of a depthwise or grouped convolution, cut with its groups"
        for each in np.unique(solution.classes[labels]).tolist():
            if each in solution.reasons:
                return str(solution.reasons[each])
            if solution.is_block[each] and (inside := _reason_inside(solution, each)):
                return f"one position for each head or group, and these stay: {inside}"
        if np.unique(solution.classes[labels]).size == 1:
            return SINGLE
        if solution.is_block[solution.classes[labels]].any():
            return "one position for each row of a table whose rows cannot go alone"
    return "its labels are not read by any operator with a rule"


def _reason_inside(solution: Solution, block: int) -> str | None:
    """Why a block stays: the first reason of a channel inside it."""
    within = np.isin(solution.threads, solution.inside[:, [block]].tocoo().coords[0])
    found = (solution.reasons.get(each) for each in np.unique(solution.classes[within]).tolist())
    return next((str(reason) for reason in found if reason), None)
