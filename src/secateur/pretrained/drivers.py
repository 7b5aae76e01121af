"""Which numbers of a config set which dimensions of which tensors, found by building the class with other numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import RewriteError
from secateur.pretrained.config import Key, Shapes, shapes_from, shapes_of, told, unset, whole_numbers

Place = tuple[str, int]
"""A tensor's name and one of its dimensions."""


@dataclass(frozen=True)
class Driver:
    """A number of a config, or one that stands there several times, with all dimensions that change with it."""

    keys: tuple[Key, ...]
    value: int
    places: frozenset[Place]

    def __str__(self) -> str:
        return " and ".join(map(told, self.keys))

    def set_to(self, value: int) -> dict[Key, int]:
        """The config's entries with another value."""
        return dict.fromkeys(self.keys, value)


@dataclass(frozen=True)
class Drivers:
    """What sets the widths of a class of models."""

    model_class: type[nn.Module]
    config: Any
    settled: Mapping[Key, int]
    """Keys without a value that stand for a width, with the one that leaves the model as it is."""
    shapes: Shapes
    """Of the dense model's tensors."""
    found: tuple[Driver, ...]

    def shapes_with(self, values: Mapping[Key, int]) -> Shapes | None:
        """The shapes that a config with these values gives, if it gives any."""
        return shapes_from(self.model_class, self.config, {**self.settled, **values})

    def steps(self, driver: Driver) -> int:
        """The most equal steps in which a number can be lowered: where other numbers must divide it, it goes down in multiples."""
        for size in (n for n in range(1, driver.value // 2 + 1) if driver.value % n == 0):
            lower = [driver.value - size * number for number in (1, 2) if size * number < driver.value]
            found = [self.shapes_with(driver.set_to(number)) for number in lower]
            if all(shapes is not None and shapes.keys() == self.shapes.keys() for shapes in found):
                return driver.value // size
        return 1

    def of(self, place: Place) -> list[Driver]:
        """All that set a dimension."""
        return [driver for driver in self.found if place in driver.places]


def drivers(model: nn.Module, config: Any, widths: Collection[int]) -> Drivers:
    """Find what sets the widths of a model; ``widths`` are those that a key without a value may stand for.

    Raises :class:`RewriteError` where the config does not describe the model as it is.
    """
    start = Drivers(type(model), config, {}, shapes_of(model), ())
    built = start.shapes_with({})
    if built != start.shapes:
        unlike = [] if built is None else sorted(n for n in {**built, **start.shapes} if built.get(n) != start.shapes.get(n))
        raise RewriteError(
            f"{type(model).__name__} built from its config is another model than this{': ' + ', '.join(unlike[:3]) if unlike else ''}"
        )
    settled = {key: width for key in unset(config) if (width := _stands_for(start, key, widths)) is not None}
    start = Drivers(start.model_class, config, settled, start.shapes, ())
    return Drivers(start.model_class, config, settled, start.shapes, tuple(_driving(start, {**whole_numbers(config), **settled})))


def _stands_for(start: Drivers, key: Key, widths: Collection[int]) -> int | None:
    """The width that a key without a value stands for: with it nothing changes, with another one something does."""
    for width in sorted(widths):
        if start.shapes_with({key: width}) == start.shapes and _changes(start, [key], width):
            return width
    return None


def _driving(start: Drivers, numbers: Mapping[Key, int]) -> Iterator[Driver]:
    rest: dict[int, list[Key]] = defaultdict(list)
    for key, value in numbers.items():
        places = _changes(start, [key], value)
        if places is None:
            rest[value].append(key)
        elif places:
            yield Driver((key,), value, places)
    for value, keys in rest.items():
        if len(keys) > 1 and (places := _changes(start, keys, value)):
            yield Driver(tuple(keys), value, places)


def _changes(start: Drivers, keys: Sequence[Key], value: int) -> frozenset[Place] | None:
    """The dimensions that change with a number; ``None`` where no other number gives the same tensors."""
    for other in (2 * value, value // 2):
        shapes = start.shapes_with(dict.fromkeys(keys, other))
        if shapes is not None and shapes.keys() == start.shapes.keys():
            pairs = ((name, zip(shapes[name], old, strict=False)) for name, old in start.shapes.items() if len(old) == len(shapes[name]))
            return frozenset((name, dim) for name, sizes in pairs for dim, (a, b) in enumerate(sizes) if a != b)
    return None
