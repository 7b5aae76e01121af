"""The config that describes a smaller model, found by building the class from it, and what its weights are then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import RewriteError
from secateur.groups import ChannelGroup
from secateur.plan import Prune
from secateur.pretrained.config import Key, Shapes, config_of, renewed, told
from secateur.pretrained.description import Description, Factors
from secateur.pretrained.drivers import Driver, Drivers, drivers
from secateur.pretrained.files import disagreement
from secateur.rewrite import Cut
from secateur.rewrite.slices import Slices

TOLERANCE = 1e-5
"""How far outputs of the class built anew may be from the proven model's, relative to them: both are computed in float64."""


def describe(cut: Cut, groups: Sequence[ChannelGroup], edits: Sequence[Prune], small: nn.Module, inputs: tuple[Any, Any]) -> Description:
    """The config that describes a proven smaller model.

    The class is built from the dense model's config with other numbers, until all tensors have the shapes that the cut leaves; then it
    must give the proven model's outputs, on weights that were shaken so that they show.

    Raises :class:`RewriteError` where no numbers do that, with the first tensor that no number fits.
    """
    model, capture = cut.solution.walk.capture.model, cut.solution.walk.capture
    config = config_of(model)
    if config is None:
        raise RewriteError(f"{type(model).__name__} has no config that it can be built from")
    wanted = _shapes_after(cut, capture.tied)
    driven = drivers(model, config, {size for shape in wanted.values() for size in shape} | {m.length for g in groups for m in g.members})
    values = _fitting(driven, wanted, {(g.size - len(e.remove)) / g.size for e in edits for g in groups if g.name == e.group})
    pairs = ((key, driver.value, values.get(key, driver.value)) for driver in driven.found for key in driver.keys)
    numbers = {told(key): (old, new) for key, old, new in pairs if old != new}
    for factors in ({}, _factors(cut, groups, edits)):
        found = Description(type(model), renewed(config, {**driven.settled, **values}), numbers, factors)
        error = disagreement(found, small, inputs)
        if error <= TOLERANCE:
            return found
    raise RewriteError(
        f"{type(model).__name__} built with {found} gives outputs {error:.1e} off the proven model's: it derives more than widths from them"
    )


def _shapes_after(cut: Cut, tied: Mapping[str, Sequence[str]]) -> Shapes:
    slices, model = Slices.of(cut), cut.solution.walk.capture.model
    first = {alias: name for name, names in tied.items() for alias in names}
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    return {n: slices.shape(first.get(n, n), t.shape) for n, t in tensors.items()}


def _fitting(driven: Drivers, wanted: Shapes, shares: set[float]) -> dict[Key, int]:
    """Numbers with which the class has the wanted shapes, each set of numbers that meet in a dimension tried by itself."""
    values: dict[Key, int] = {}
    for together in _meeting([d for d in driven.found if _differs(d, driven.shapes, wanted)]):
        places = {place for driver in together for place in driver.places}
        for numbers in product(*(_candidates(d, driven.shapes, wanted, shares) for d in together)):
            tried = {k: v for driver, n in zip(together, numbers, strict=True) for k, v in driver.set_to(n).items()}
            shapes = driven.shapes_with({**values, **tried})
            if shapes is not None and all(_size(shapes, place) == _size(wanted, place) for place in places):
                values |= tried
                break
    final = driven.shapes_with(values)
    unlike = [name for name in wanted if final is None or final.get(name) != wanted[name]]
    if unlike:
        shape = "x".join(map(str, wanted[unlike[0]]))
        raise RewriteError(f"no numbers in the config of {driven.model_class.__name__} give {unlike[0]} the shape {shape}")
    return values


def _differs(driver: Driver, old: Shapes, new: Shapes) -> bool:
    return any(_size(old, place) != _size(new, place) for place in driver.places)


def _size(shapes: Shapes, place: tuple[str, int]) -> int:
    return shapes[place[0]][place[1]]


def _meeting(found: Sequence[Driver]) -> Iterator[list[Driver]]:
    """Drivers that share dimensions, together."""
    rest = list(found)
    while rest:
        together = [rest.pop(0)]
        for each in together:
            near = [d for d in rest if not d.places.isdisjoint(each.places)]
            together += near
            rest = [d for d in rest if d not in near]
        yield together


def _candidates(driver: Driver, old: Shapes, new: Shapes, shares: set[float]) -> list[int]:
    """The dense number, and what is left of it by the sizes of its dimensions and by the shares that groups keep."""
    kept = shares | {_size(new, place) / _size(old, place) for place in driver.places}
    left = (driver.value * share for share in kept)
    return sorted({driver.value, *(round(number) for number in left if abs(number - round(number)) < 1e-6 and round(number) > 0)})


def _factors(cut: Cut, groups: Sequence[ChannelGroup], edits: Sequence[Prune]) -> Factors:
    """What keeps the scale of attentions whose class derives it from the width of a head, d^-1/2.

    Queries and keys are the channels that nothing but each other reads, so both take up (d'/d)^1/4.
    """
    known, slices, tied = {group.name: group for group in groups}, Slices.of(cut), cut.solution.walk.capture.tied
    out: dict[str, dict[int, Tensor]] = {}
    for edit in edits:
        group = known[edit.group]
        if edit.kind == "channels" and all(member.role != "reads" for member in group.members):
            factor = ((group.size - len(edit.remove)) / group.size) ** 0.25
            for member in group.members:
                whole = torch.ones(member.length, dtype=torch.float64)
                whole[torch.as_tensor(member.positions)] = factor
                part = whole[torch.as_tensor(slices.kept[member.tensor][member.dim])]
                for name in tied.get(member.tensor, (member.tensor,)):
                    values = out.setdefault(name, {})
                    values[member.dim] = values[member.dim] * part if member.dim in values else part
    return out
