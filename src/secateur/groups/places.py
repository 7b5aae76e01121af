"""All positions of all weights in flat arrays, so that members of many groups are found in one sorting."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np

from secateur.groups.fields import Labels
from secateur.groups.group import Member
from secateur.groups.ledger import Role
from secateur.groups.solve import Solution

ROLES: tuple[Role, ...] = ("carries", "reads", "writes")
WRITES = ROLES.index("writes")


class Places:
    """Where labels lie: weight, dimension and position of each, with the role that it plays."""

    def __init__(self, solution: Solution) -> None:
        items = list(solution.slot_labels.items())
        self.keys = [key for key, _ in items]
        self.lengths = [labels.size for _, labels in items]
        self.rows = [labels.shape[0] if labels.ndim > 1 else 1 for _, labels in items]
        empty = [np.zeros(0, dtype=np.int64)]
        self.labels: Labels = np.concatenate([*empty, *(labels.ravel() for _, labels in items)])
        self.key: Labels = np.repeat(np.arange(len(items)), self.lengths)
        self.position: Labels = np.concatenate([*empty, *(np.arange(n) for n in self.lengths)])
        self.roles: Labels = _strongest_roles(solution)[self.labels]

    def first(self, owners: Labels, count: int) -> Labels:
        """The first label of each owner (class or thread) of every place, those that write before the others."""
        far = int(self.labels.max(initial=0)) + 1
        first = np.full(count, 2 * far, dtype=np.int64)
        np.minimum.at(first, owners, np.where(self.roles == WRITES, self.labels, self.labels + far))
        return first

    def members(self, group: Labels, channel: Labels, hits: Labels) -> dict[int, tuple[Member, ...]]:
        """Members by group, given the group and the channel of some places."""
        order = np.lexsort((hits, self.key[hits], group))
        hits, group, channel = hits[order], group[order], channel[order]
        starts = np.flatnonzero(np.diff(group * len(self.keys) + self.key[hits], prepend=-1)).tolist()
        found: dict[int, list[Member]] = defaultdict(list)
        for start, end in pairwise([*starts, hits.size]):
            run = hits[start:end]
            key = int(self.key[run[0]])
            name, dim = self.keys[key]
            role = ROLES[int(self.roles[run].max())]
            member = Member(name, dim, role, self.position[run], channel[start:end], self.lengths[key], self.rows[key])
            found[int(group[start])].append(member)
        return {number: tuple(members) for number, members in found.items()}

    def makers(self, classes: Labels, count: int) -> Labels:
        """For each class a number that stands for the dimensions of weights that make it (all of its places if none does).

        Classes with the same number are made in the same dimensions, equally often in each.
        """
        made, placed = (self._footprints(classes, chosen, count) for chosen in (self.roles == WRITES, self.roles >= 0))
        return np.where(made == 0, placed, made).view(np.int64)

    def _footprints(self, classes: Labels, chosen: np.ndarray, count: int) -> np.ndarray:
        pairs, counts = np.unique(classes[chosen] * len(self.keys) + self.key[chosen], return_counts=True)
        prints = np.zeros(count, dtype=np.uint64)
        np.add.at(prints, pairs // len(self.keys), _mixed((pairs % len(self.keys)).astype(np.uint64) << 24 | counts.astype(np.uint64)))
        return prints


class Owned:
    """The places of each owner, given the owner (a class or a thread) of every place."""

    def __init__(self, owners: Labels, count: int) -> None:
        self._places = np.argsort(owners, kind="stable")
        self._bounds = np.searchsorted(owners[self._places], np.arange(count + 1))

    def of(self, owners: Labels) -> tuple[Labels, Labels]:
        """The places of some owners, and for each place which of them it belongs to."""
        counts = self._bounds[owners + 1] - self._bounds[owners]
        which = np.repeat(np.arange(owners.size), counts)
        within = np.arange(which.size) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._places[self._bounds[owners][which] + within], which


def _mixed(x: np.ndarray) -> np.ndarray:
    """Scatter whole numbers over all 64 bits (splitmix64), so that sums of different sets differ."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ x >> np.uint64(31))


def _strongest_roles(solution: Solution) -> Labels:
    """The strongest role that each label plays: writes before reads before carries."""
    roles = np.zeros(solution.ledger.count, dtype=np.int64)
    for labels, role, _ in solution.ledger.roles:
        if role in ROLES:
            real = labels[labels >= 0]
            roles[real] = np.maximum(roles[real], ROLES.index(role))
    return roles
