"""Which groups must keep alike, and which stay whole, for a config to describe what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd

from torch import nn

from secateur.allocate import Ties, alike
from secateur.errors import RewriteError
from secateur.groups import ChannelGroup
from secateur.pretrained.config import config_of
from secateur.pretrained.drivers import Drivers, Place, drivers


def uniform_ties(model: nn.Module, groups: Sequence[ChannelGroup], tied: Mapping[str, Sequence[str]]) -> Ties:
    """Tie the groups of repeated layers, and those whose widths one number of the model's config sets.

    A group stays whole where no number sets its width alone: where it also sets that of something that stays whole, or where the
    class makes a tensor from its config anew. ``tied`` are all names of each tensor, by the first. Of a model without a config
    only repeated layers are tied.
    """
    usable = [group for group in groups if group.prunable]
    found, config = alike(usable), config_of(model)
    if config is None:
        return found
    places = {group.name: _places(group, tied) for group in usable}
    widths = {member.length for group in usable for member in group.members}
    try:
        driven = drivers(model, config, widths)
    except RewriteError as error:
        return Ties(found.together, {group.name: str(error) for group in usable})
    whole: dict[str, str] = {}
    steps: dict[tuple[str, ...], int] = {}
    sets = list(_united([*found.together, *_by_driver(usable, places, driven)]))
    for names in sets:
        own = {place for name in names for place in places[name]}
        if (reason := _reason(own, driven)) is not None:
            whole |= dict.fromkeys(names, reason)
        else:
            steps[names] = gcd(*(driven.steps(driver) for driver in driven.found if driver.places <= own))
    return Ties(tuple(sets), whole, steps)


def _places(group: ChannelGroup, tied: Mapping[str, Sequence[str]]) -> set[Place]:
    return {(name, m.dim) for m in group.members for name in tied.get(m.tensor, (m.tensor,))}


def _by_driver(groups: Sequence[ChannelGroup], places: Mapping[str, set[Place]], driven: Drivers) -> Iterable[tuple[str, ...]]:
    for driver in driven.found:
        for kind in ("channels", "blocks"):
            yield tuple(g.name for g in groups if g.kind == kind and places[g.name] & driver.places)


def _united(sets: Iterable[tuple[str, ...]]) -> Iterable[tuple[str, ...]]:
    """Sets that share a name as one."""
    out: list[dict[str, None]] = []
    for names in sets:
        touched = [each for each in out if not each.keys().isdisjoint(names)]
        out = [each for each in out if each.keys().isdisjoint(names)]
        merged = {name: None for each in touched for name in each} | dict.fromkeys(names)
        out += [merged] if merged else []
    return (tuple(each) for each in out)


def _reason(own: set[Place], driven: Drivers) -> str | None:
    """Why no numbers of the config can describe these dimensions once they are smaller, if none can."""
    for tensor, dim in sorted(own):
        if tensor not in driven.shapes:
            return f"the class makes {tensor} from its config anew"
        setting = driven.of((tensor, dim))
        if any(driver.places <= own for driver in setting):
            continue
        if not setting:
            return f"no number of the config sets dimension {dim} of {tensor}"
        other, axis = min(setting[0].places - own)
        return f"{setting[0]} in the config also sets dimension {axis} of {other}"
    return None
