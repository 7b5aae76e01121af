"""Names that a person knows: of the module that makes the channels, or of the sum or product where producers meet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from secateur.groups.fields import NONE, Labels
from secateur.groups.group import ChannelGroup, Member
from secateur.groups.solve import Solution


def module_of(tensor: str) -> str:
    """The module that a weight belongs to: ``layer1.0.conv1`` for ``layer1.0.conv1.weight``."""
    return re.sub(r"\.?parametrizations\..*$", "", tensor.rpartition(".")[0]) if "." in tensor else ""


class Names:
    """Names groups of one solution."""

    def __init__(self, solution: Solution) -> None:
        self._roles = solution.ledger.roles
        self._nodes = {n.name: n for n in solution.walk.capture.graph.nodes}
        self._sums = self._by_class(solution, "joined")
        self._dots = self._by_class(solution, "dot")
        self._mixed = self._by_class(solution, "mixed")

    def _by_class(self, solution: Solution, role: str) -> Labels:
        """For each class the number of the first node at which labels of it play a role, or ``NONE``."""
        first = np.full(solution.count, NONE, dtype=np.int64)
        for number in reversed(range(len(solution.ledger.roles))):
            labels, found, _ = solution.ledger.roles[number]
            if found == role:
                first[solution.classes[labels[labels != NONE]]] = number
        return first

    def _node(self, first: Labels, each: int) -> str | None:
        return None if first[each] == NONE else self._roles[first[each]][2]

    def channel_name(self, classes: Sequence[int], members: Sequence[Member]) -> str:
        """The name of a group of channels."""
        makers = _makers(members)
        for nodes, last in ((self._dots, "qk"), (self._mixed, "v")):
            if (node := self._node(nodes, classes[0])) is not None:
                return _joined(self._module(node) or _common(makers), last)
        if len(makers) > 1 and (node := self._node(self._sums, classes[0])) is not None:
            return _joined(self._module(node), "add" if self._module(node) else node)
        return makers[0]

    def _module(self, node: str) -> str:
        return str(self._nodes[node].meta.get("module", ""))

    def block_name(self, members: Sequence[Member], inside: Sequence[int]) -> str:
        """The name of a group of blocks."""
        products = next((node for nodes in (self._dots, self._mixed) for c in inside if (node := self._node(nodes, c))), None)
        makers = _makers(members)
        return _joined(makers[0], "groups") if products is None else _joined(self._module(products) or _common(makers), "heads")

    def settled(self, groups: list[ChannelGroup]) -> list[ChannelGroup]:
        """The groups in order, with names that differ: further ones of one name get a number."""
        seen: Counter[str] = Counter()
        out = []
        for group in groups:
            seen[group.name] += 1
            number = seen[group.name]
            out.append(group if number == 1 else replace(group, name=f"{group.name}.{number}"))
        return out


def _makers(members: Sequence[Member]) -> list[str]:
    """Modules that make the channels, or where they live if none does."""
    writers = [m for m in members if m.role == "writes"] or list(members)
    return list(dict.fromkeys(module_of(m.tensor) or m.tensor for m in writers))


def _joined(path: str, last: str) -> str:
    return f"{path}.{last}" if path else last


def _common(paths: Sequence[str]) -> str:
    """The module that holds all of these: the module itself if there is only one."""
    if len(paths) == 1:
        return paths[0]
    levels = zip(*(p.split(".") for p in paths), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))
