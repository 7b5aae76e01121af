"""Ratios and channel indices that were given by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from secateur.errors import SelectionError
from secateur.groups.group import ChannelGroup
from secateur.plan import did_you_mean

_WILD = frozenset("*?[")


def check_ratio(ratio: object, where: str) -> float:
    """The ratio, or :class:`~secateur.errors.SelectionError` unless it is a number in [0, 1)."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise SelectionError(f"The ratio {where} is {ratio!r}; it is the fraction to remove, from 0 up to but not including 1.")
    return float(ratio)


def ratios_by_group(groups: Sequence[ChannelGroup], ratios: Mapping[str, float], exclude: Collection[str] = ()) -> dict[str, float]:
    """The ratio of each group that a pattern names, by the group's name.

    A pattern is a name or a glob, of the group or of a module or weight that stands for it. The most specific pattern
    wins: an exact name before a glob, then the later before the earlier. A glob applies to whole blocks only where it
    matches nothing else.
    """
    exact: dict[str, float] = {}
    globs: dict[str, float] = {}
    for pattern, ratio in ratios.items():
        check_ratio(ratio, f"for {pattern!r}")
        store = globs if _is_glob(pattern) else exact
        for group in named(groups, pattern, exclude):
            store[group.name] = float(ratio)
    return globs | exact


def named(groups: Sequence[ChannelGroup], pattern: str, exclude: Collection[str] = ()) -> list[ChannelGroup]:
    """The prunable groups that a pattern stands for; none is an error that says why or suggests a name."""
    found = _matches(groups, pattern)
    if not found:
        names = [n for g in groups for n in (g.name, *g.aliases)]
        raise SelectionError(f"No layer matches {pattern!r}.{did_you_mean(pattern, names)}")
    usable = [g for g in found if g.prunable and g.name not in exclude]
    if not usable:
        raise SelectionError(f"Nothing that {pattern!r} names can be pruned: {_why_not(found)}.")
    return usable


def indices_by_group(
    groups: Sequence[ChannelGroup], indices: Mapping[str, Iterable[int]], exclude: Collection[str] = ()
) -> dict[str, tuple[int, ...]]:
    """The channels to remove of each group that is named, sorted and each once.

    With the name of a group the numbers are its channels; with that of a module or weight they are the outputs of that
    layer, each of which belongs to some group.
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    by_name = {g.name: g for g in groups}
    for name, numbers in indices.items():
        given = _whole_numbers(name, numbers)
        if name in by_name:
            _check_range(name, given, by_name[name].size)
            wanted[named(groups, name, exclude)[0].name].update(given)
        else:
            for group, channels in _outputs(named(groups, name, exclude), name, given):
                wanted[group].update(channels)
    return {name: tuple(sorted(channels)) for name, channels in wanted.items() if channels}


def _matches(groups: Sequence[ChannelGroup], pattern: str) -> list[ChannelGroup]:
    if not _is_glob(pattern):
        return [g for g in groups if g.name == pattern] or [g for g in groups if pattern in g.aliases]
    found = [g for g in groups if any(fnmatchcase(n, pattern) for n in (g.name, *g.aliases))]
    return [g for g in found if g.kind == "channels"] or found


def _is_glob(pattern: str) -> bool:
    return not _WILD.isdisjoint(pattern)


def _why_not(groups: Sequence[ChannelGroup]) -> str:
    reasons = [f"{g.name} {'stays whole: ' + g.reason if g.reason else 'is among the layers to leave alone'}" for g in groups[:3]]
    return "; ".join(reasons) + ("; ..." if len(groups) > 3 else "")


def _whole_numbers(name: str, numbers: Iterable[int]) -> list[int]:
    given = list(numbers)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in given):
        raise SelectionError(f"The indices for {name!r} must be whole numbers, not {given[:8]!r}.")
    return [int(n) for n in given]


def _check_range(name: str, numbers: Sequence[int], size: int) -> None:
    outside = [n for n in numbers if not 0 <= n < size]
    if outside:
        raise SelectionError(f"{name!r} has channels 0 to {size - 1}; {', '.join(map(str, outside[:8]))} cannot be removed.")


def _outputs(groups: Sequence[ChannelGroup], name: str, numbers: Sequence[int]) -> Iterable[tuple[str, list[int]]]:
    """The channels behind some outputs of a layer, group by group."""
    members = [(g, m) for g in groups for m in (g.writers or g.members) if m.tensor == name or m.tensor.startswith(f"{name}.")]
    length = max((m.length for _, m in members), default=0)
    _check_range(name, numbers, length)
    left = set(numbers)
    for group, member in members:
        hit = np.isin(member.positions, numbers)
        left -= set(member.positions[hit].tolist())
        yield group.name, member.channels[hit].tolist()
    if left:
        raise SelectionError(f"Output {min(left)} of {name!r} belongs to no group that can be pruned.")
