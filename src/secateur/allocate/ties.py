"""Groups that must keep alike: chosen as one group, each of them with channels of its own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np

from secateur.errors import SelectionError
from secateur.groups.group import ChannelGroup

UNLIKE = "the groups that must keep alike have no common step"


@dataclass(frozen=True)
class Ties:
    """Which groups keep the same share of their channels, and which can't keep what the others do."""

    together: tuple[tuple[str, ...], ...] = ()
    """Names of groups, by set."""
    whole: Mapping[str, str] = field(default_factory=dict)
    """Groups of which nothing may go, with the reason."""
    steps: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """In how many equal steps a set may go at most, where not every width is allowed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What stays whole for the sake of uniformity, and why."""
        by_reason: dict[str, list[str]] = defaultdict(list)
        for name, reason in self.whole.items():
            by_reason[reason].append(name)
        return tuple(f"{', '.join(names)}: kept whole, since {reason}" for reason, names in by_reason.items())


def alike(groups: Iterable[ChannelGroup]) -> Ties:
    """Tie prunable groups that lie in the same way in tensors of the same shapes and of names that differ in numbers alone.

    So the layers of a stack, which repeats one structure under numbered names, keep the same widths.
    """
    found: dict[object, list[str]] = defaultdict(list)
    for group in groups:
        if group.prunable:
            found[_structure(group)].append(group.name)
    return Ties(tuple(map(tuple, found.values())))


def _structure(group: ChannelGroup) -> object:
    places = sorted({(re.sub(r"\d+", "*", m.tensor), m.dim, m.role, m.length, m.positions.size, m.rows) for m in group.members})
    return group.kind, group.size, group.take, tuple(places)


@dataclass(frozen=True, eq=False)
class Joined:
    """Groups of which some stand for several."""

    groups: tuple[ChannelGroup, ...]
    parts: Mapping[str, tuple[ChannelGroup, ...]]
    """The groups that each of them stands for, by its name."""

    def names(self, names: Collection[str]) -> set[str]:
        """The groups that stand for any of those named."""
        return {name for name, parts in self.parts.items() if any(part.name in names for part in parts)}

    def least(self, name: str, minimum: int) -> int:
        """What must stay of a group, where so much must stay of each that it stands for."""
        return minimum * len(self.parts[name])

    def split(self, remove: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Channels that go, by the groups that were joined."""
        out: dict[str, tuple[int, ...]] = {}
        for name, channels in remove.items():
            wanted, start = np.array(channels, dtype=np.int64), 0
            for part in self.parts[name]:
                own = wanted[(wanted >= start) & (wanted < start + part.size)] - start
                start += part.size
                if own.size:
                    out[part.name] = tuple(own.tolist())
        return out

    def refuse_indices(self, names: Iterable[str]) -> None:
        """Raise :class:`SelectionError` where channels were given for a group that is tied to others."""
        for name in names:
            for parts in self.parts.values():
                if len(parts) > 1 and any(name == part.name or name in part.aliases for part in parts):
                    others = ", ".join(part.name for part in parts[:4])
                    raise SelectionError(f"{name!r} must keep as much as others do ({others}, ...): give a ratio, not channels.")


def joined(groups: Sequence[ChannelGroup], ties: Ties) -> Joined:
    """Put one group in the place of each set of groups that must keep alike; of other groups, themselves."""
    together = {name: number for number, names in enumerate(ties.together) for name in names}
    sets: dict[object, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        held = replace(group, reason=ties.whole[group.name]) if group.name in ties.whole else group
        sets[together.get(group.name, group.name)].append(held)
    parts = {some[0].name: tuple(some) for some in sets.values()}
    allowed = {name: steps for names, steps in ties.steps.items() for name in names}
    return Joined(tuple(_as_one(some, allowed.get(name, 0)) for name, some in parts.items()), parts)


def _as_one(parts: Sequence[ChannelGroup], allowed: int) -> ChannelGroup:
    """One group with the cells of all: a step takes the same share of each."""
    first = parts[0]
    if len(parts) == 1 and not allowed:
        return first
    takes, reason = _common_steps(parts, allowed), next((part.reason for part in parts if part.reason), None)
    offsets = np.cumsum([0, *(part.size for part in parts)]).tolist()
    cells = np.cumsum([0, *(part.rows for part in parts)]).tolist()
    return replace(
        first,
        classes=np.concatenate([part.classes for part in parts]),
        cells=np.concatenate([part.cells + start for part, start in zip(parts, cells, strict=False)]),
        take=tuple(take for some in takes for take in some) if takes else tuple(take for part in parts for take in part.take),
        members=tuple(replace(m, channels=m.channels + start) for part, start in zip(parts, offsets, strict=False) for m in part.members),
        aliases=tuple(dict.fromkeys(name for part in parts for name in (part.name, *part.aliases))),
        reason=reason if takes else reason or UNLIKE,
    )


def _common_steps(parts: Sequence[ChannelGroup], allowed: int) -> list[list[int]] | None:
    """Channels of each cell of each group that go in one step, such that all cells are through after as many steps, those allowed."""
    steps = [set((np.bincount(part.cells, minlength=part.rows) / np.array(part.take)).tolist()) for part in parts]
    if any(len(some) != 1 or not float(next(iter(some))).is_integer() for some in steps):
        return None
    counts = [int(some.pop()) for some in steps]
    common = gcd(*counts, allowed)
    return [[take * (count // common) for take in part.take] for part, count in zip(parts, counts, strict=True)] if common > 1 else None
