"""Layers to leave alone, and the groups that this keeps whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from secateur.errors import SelectionError
from secateur.groups.group import ChannelGroup
from secateur.plan import did_you_mean

Leave = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A name or glob of modules, weights or groups; a type of module; or a function of a module's name and the module."""


def excluded(
    groups: Sequence[ChannelGroup], model: nn.Module, leave: Sequence[Leave], *, tied: Mapping[str, tuple[str, ...]] | None = None
) -> frozenset[str]:
    """Names of the groups that stay whole so that nothing changes in the given layers, neither their outputs nor their inputs.

    ``tied`` holds all names of each weight by the one that groups use.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    out: set[str] = set()
    for each in leave:
        direct, places = _found(groups, modules, each)
        touched = {g.name for g in groups if any(_lies_in(n, places) for m in g.members for n in _names(m.tensor, tied))}
        if isinstance(each, str) and not direct and not places:
            known = [n for g in groups for n in (g.name, *(m.tensor for m in g.members))]
            raise SelectionError(f"No layer to leave alone matches {each!r}.{did_you_mean(each, [*modules, *dict.fromkeys(known)])}")
        out |= direct | touched
    return frozenset(out)


def _found(groups: Sequence[ChannelGroup], modules: Mapping[str, nn.Module], leave: Leave) -> tuple[set[str], set[str]]:
    """Groups that are meant by their own names, and the modules and weights that are meant."""
    if isinstance(leave, str):
        tensors = [m.tensor for g in groups for m in g.members]
        return {g.name for g in groups if fnmatchcase(g.name, leave)}, {n for n in (*modules, *tensors) if n and fnmatchcase(n, leave)}
    if isinstance(leave, type):
        return set(), {name for name, module in modules.items() if isinstance(module, leave)}
    return set(), {name for name, module in modules.items() if leave(name, module)}


def _lies_in(tensor: str, places: set[str]) -> bool:
    parts = tensor.split(".")
    return any(".".join(parts[:length]) in places for length in range(len(parts) + 1))


def _names(tensor: str, tied: Mapping[str, tuple[str, ...]] | None) -> tuple[str, ...]:
    return (tensor, *(tied or {}).get(tensor, ()))
