"""Put channel groups together: families with their members, names and reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from secateur.capture.facts import CONSTANT_PREFIX
from secateur.groups.distinct import distinct_pairs
from secateur.groups.families import Family, block_families, channel_families, numbered
from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup, Kind, Member
from secateur.groups.naming import Names, module_of
from secateur.groups.places import Owned, Places
from secateur.groups.solve import Solution


def build_groups(solution: Solution) -> list[ChannelGroup]:
    """All channel groups of a solution, single channels and blocks, prunable or not."""
    builder = _Builder(solution)
    groups = [*builder.all_channels(), *(builder.blocks(f) for f in block_families(solution))]
    listed = [g for g in groups if any(not m.tensor.startswith(CONSTANT_PREFIX) for m in g.members) and (g.prunable or g.writers)]
    return builder.names.settled(sorted(listed, key=builder.first_of))


class _Builder:
    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        self.names = Names(solution)
        self.places = Places(solution)
        self.classes = solution.classes[self.places.labels]
        self.threads = solution.threads[self.places.labels]
        self.first = self.places.first(self.classes, solution.count)
        self.of_class = Owned(self.classes, solution.count)
        self.of_thread = Owned(self.threads, solution.belongs.shape[0])
        self.first_of_thread = self.places.first(self.threads, solution.belongs.shape[0])

    def all_channels(self) -> list[ChannelGroup]:
        """Groups of single channels, their members found together."""
        families = channel_families(self.solution, self.places.makers(self.classes, self.solution.count))
        family, number = (np.full(self.solution.count, -1, dtype=np.int64) for _ in range(2))
        orders = [np.argsort(self.first[f.classes], kind="stable") for f in families]
        for place, (each, order) in enumerate(zip(families, orders, strict=True)):
            family[each.classes] = place
            number[each.classes[order]] = np.arange(order.size)
        hits = np.flatnonzero(family[self.classes] >= 0)
        members = self.places.members(family[self.classes[hits]], number[self.classes[hits]], hits)
        found = [(f, o, members.get(i, ())) for i, (f, o) in enumerate(zip(families, orders, strict=True))]
        return [self._channels(f, o, m) for f, o, m in found if f.reason is None or any(x.role == "writes" for x in m)]

    def _channels(self, family: Family, order: Labels, members: tuple[Member, ...]) -> ChannelGroup:
        name = self.names.channel_name(family.classes[order].tolist(), members)
        return self._group(name, "channels", family, order, members)

    def blocks(self, family: Family) -> ChannelGroup:
        """A group of whole blocks: everything inside them is a member, and what has one position for each of them.

        Blocks that hold each other and nothing else, as in an outer product of a layer's channels with themselves, are its channels.
        """
        held = self.solution.inside[:, family.classes].tocoo()
        thread, block = (each.astype(np.int64) for each in held.coords)
        first = np.full(family.classes.size, np.iinfo(np.int64).max)
        np.minimum.at(first, block, self.first_of_thread[thread])
        order = np.argsort(first, kind="stable")
        number = np.argsort(order)
        (within, of), (own, of_own) = self.of_thread.of(thread), self.of_class.of(family.classes)
        places, channels = np.concatenate([within, own]), np.concatenate([number[block[of]], number[of_own]])
        places, channels = distinct_pairs(places, channels)
        inside = np.unique(self.classes[places])
        crossed = self.classes[within] != family.classes[block[of]]
        if crossed.any() and np.isin(inside, family.classes).all():
            return self._channels(family, order, self._members(places, channels))
        last = np.diff(places, append=-1) != 0
        members = self._members(places[last], channels[last])
        return self._group(self.names.block_name(members, inside.tolist()), "blocks", family, order, members)

    def _group(self, name: str, kind: Kind, family: Family, order: Labels, members: Sequence[Member]) -> ChannelGroup:
        makers = [m for m in members if m.role == "writes"] or list(members)
        different, cells = numbered(family.cells[order])
        aliases = dict.fromkeys(n for m in makers for n in (module_of(m.tensor), m.tensor) if n) if kind == "channels" else {}
        return ChannelGroup(
            name=name or "model",
            kind=kind,
            classes=family.classes[order],
            cells=cells,
            take=tuple(family.take[c] for c in different.tolist()),
            members=tuple(members),
            aliases=tuple(aliases),
            reason=family.reason,
            signature=self._signature(kind, members),
        )

    def _signature(self, kind: Kind, members: Sequence[Member]) -> str:
        """Which places a group has in how many tensors, and of what rank: a residual stream has more than the inside of a block."""
        ranks = self.solution.walk.ranks
        found = Counter(f"{m.role}:{m.dim}/{ranks[m.tensor]}{'*' if m.rows > 1 else ''}" for m in members)
        return " ".join([kind, *(f"{count}x{place}" for place, count in sorted(found.items()))])

    def _members(self, places: Labels, channels: Labels) -> tuple[Member, ...]:
        """The members of one group, whose places may belong to several of its channels."""
        return self.places.members(np.zeros(places.size, dtype=np.int64), channels, places).get(0, ())

    def first_of(self, group: ChannelGroup) -> int:
        """Where a group stands among the others: by its first label."""
        if group.kind == "channels":
            return int(self.first[group.classes].min())
        member = (group.writers or group.members)[0]
        return int(self.solution.slot_labels[member.tensor, member.dim].ravel()[member.positions].min())
