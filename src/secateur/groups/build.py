"""Put channel groups together: families with their members, names and reasons."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from secateur.groups.families import Family, block_families, channel_families
from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup, Kind, Member
from secateur.groups.ledger import Role
from secateur.groups.naming import Names, module_of
from secateur.groups.solve import Solution

_ROLES: tuple[Role, ...] = ("carries", "reads", "writes")
_CODES = {role: code for code, role in enumerate(_ROLES)}


def build_groups(solution: Solution) -> list[ChannelGroup]:
    """All channel groups of a solution, single channels and blocks, prunable or not."""
    builder = _Builder(solution)
    channels = [builder.channels(f) for f in channel_families(solution, builder.writers)]
    blocks = [builder.blocks(f) for f in block_families(solution)]
    ordered = sorted((g for g in [*channels, *blocks] if g.prunable or g.writers), key=lambda g: builder.first_of(g))
    return builder.names.settled(ordered)


class _Builder:
    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        self.names = Names(solution)
        self.roles = _label_roles(solution)
        self.first = self._first_labels()
        self.writers = self._writers()
        self._number = {}  # type: dict[int, Labels]

    def _first_labels(self) -> Labels:
        """For each class its first label in a weight, those that write before the others."""
        far = self.solution.ledger.count
        first = np.full(self.solution.count, 2 * far, dtype=np.int64)
        for labels in self.solution.slot_labels.values():
            flat = labels.ravel()
            np.minimum.at(first, self.solution.classes[flat], np.where(self.roles[flat] == _CODES["writes"], flat, flat + far))
        return first

    def _writers(self) -> dict[int, tuple[object, ...]]:
        """For each class the dimensions of weights that make it (all of its places if none does), with how often."""
        made: dict[int, list[object]] = defaultdict(list)
        placed: dict[int, list[object]] = defaultdict(list)
        for key, labels in self.solution.slot_labels.items():
            flat = labels.ravel()
            classes = self.solution.classes[flat]
            for store, chosen in ((made, self.roles[flat] == _CODES["writes"]), (placed, slice(None))):
                for each, count in zip(*np.unique(classes[chosen], return_counts=True), strict=True):
                    store[int(each)].append((key, int(count)))
        return {each: tuple(made.get(each) or where) for each, where in placed.items()}

    def channels(self, family: Family) -> ChannelGroup:
        order = np.argsort(self.first[family.classes], kind="stable")
        classes = family.classes[order]
        number = np.full(self.solution.count, -1, dtype=np.int64)
        number[classes] = np.arange(classes.size)
        members = self._members(number[self.solution.classes])
        name = self.names.channel_name(classes.tolist(), members)
        return self._group(name, "channels", family, order, members)

    def blocks(self, family: Family) -> ChannelGroup:
        inside = self.solution.belongs[:, family.classes].tocoo()
        first = np.full(family.classes.size, np.iinfo(np.int64).max)
        np.minimum.at(first, inside.coords[1], _first_of_threads(self)[inside.coords[0]])
        order = np.argsort(first, kind="stable")
        place = np.argsort(order)
        of_thread = np.full(self.solution.belongs.shape[0], -1, dtype=np.int64)
        of_thread[inside.coords[0]] = place[inside.coords[1]]
        members = self._members(of_thread[self.solution.threads])
        threads = np.isin(self.solution.threads, inside.coords[0])
        name = self.names.block_name(members, np.unique(self.solution.classes[threads]).tolist())
        return self._group(name, "blocks", family, order, members)

    def _group(self, name: str, kind: Kind, family: Family, order: Labels, members: tuple[Member, ...]) -> ChannelGroup:
        makers = [m for m in members if m.role == "writes"] or list(members)
        aliases = dict.fromkeys(n for m in makers for n in (module_of(m.tensor), m.tensor) if n) if kind == "channels" else {}
        kinds = sorted({f"{m.role}:{m.dim}" for m in members})
        return ChannelGroup(
            name=name or "model",
            kind=kind,
            classes=family.classes[order],
            cells=_renumbered(family.cells[order]),
            take=tuple(family.take[c] for c in dict.fromkeys(family.cells[order].tolist())),
            members=members,
            aliases=tuple(aliases),
            reason=family.reason,
            signature=f"{kind} {' '.join(kinds)}",
        )

    def _members(self, channel_of_label: Labels) -> tuple[Member, ...]:
        members = []
        for (name, dim), labels in self.solution.slot_labels.items():
            flat = labels.ravel()
            channels = channel_of_label[flat]
            positions = np.flatnonzero(channels >= 0)
            if positions.size:
                role = _ROLES[int(self.roles[flat[positions]].max())]
                rows = labels.shape[0] if labels.ndim > 1 else 1
                members.append(Member(name, dim, role, positions, channels[positions], flat.size, rows))
        return tuple(members)

    def first_of(self, group: ChannelGroup) -> int:
        """Where a group stands among the others: by its first label."""
        if group.kind == "channels":
            return int(self.first[group.classes].min())
        member = (group.writers or group.members)[0]
        return int(self.solution.slot_labels[member.tensor, member.dim].ravel()[member.positions].min())


def _first_of_threads(builder: _Builder) -> Labels:
    solution = builder.solution
    first = np.full(solution.belongs.shape[0], 4 * solution.ledger.count, dtype=np.int64)
    for labels in solution.slot_labels.values():
        flat = labels.ravel()
        np.minimum.at(first, solution.threads[flat], np.where(builder.roles[flat] == _CODES["writes"], flat, flat + solution.ledger.count))
    return first


def _renumbered(cells: Labels) -> Labels:
    order = {cell: i for i, cell in enumerate(dict.fromkeys(cells.tolist()))}
    return np.array([order[c] for c in cells.tolist()], dtype=np.int64)


def _label_roles(solution: Solution) -> Labels:
    """The strongest role that each label plays: writes before reads before carries."""
    roles = np.zeros(solution.ledger.count, dtype=np.int64)
    for labels, role, _ in solution.ledger.roles:
        if role in _CODES:
            real = labels[labels >= 0]
            roles[real] = np.maximum(roles[real], _CODES[role])
    return roles
