"""The whole numbers of a config, and the shapes of the model that is built from it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Key = tuple[str | int, ...]
"""Where a value stands in a config: names, and numbers of list entries, from the outside in."""
Shapes = Mapping[str, tuple[int, ...]]


def config_of(model: nn.Module) -> Any | None:
    """The config that a model was built from, if it can be read and made anew as a dictionary."""
    config = getattr(model, "config", None)
    readable = callable(getattr(config, "to_dict", None)) and callable(getattr(type(config), "from_dict", None))
    return config if readable else None


def whole_numbers(config: Any) -> dict[Key, int]:
    """Every whole number from two up, by its key."""
    return {key: value for key, value in _entries(config.to_dict()) if type(value) is int and value > 1}


def unset(config: Any) -> list[Key]:
    """Every key that has no value."""
    return [key for key, value in _entries(config.to_dict()) if value is None]


def renewed(config: Any, values: Mapping[Key, int]) -> Any:
    """The same config with other values of some keys; raises what its class raises of values that it does not take."""
    told = copy.deepcopy(config.to_dict())
    for (*path, last), value in values.items():
        place = told
        for name in path:
            place = place[name]
        place[last] = value
    with _quiet():
        return type(config).from_dict(told)


def shapes_of(model: nn.Module) -> Shapes:
    """The shape of every tensor of a model's state."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}


def shapes_from(model_class: type[nn.Module], config: Any, values: Mapping[Key, int]) -> Shapes | None:
    """The shapes of a model built from a config with other values of some keys; ``None`` where none can be built."""
    try:
        with _quiet(), torch.device("meta"):
            return shapes_of(model_class(renewed(config, values)))
    except Exception:  # noqa: BLE001 - the class may raise anything of numbers that do not fit together
        return None


def told(key: Key) -> str:
    """A key as a person writes it."""
    return ".".join(map(str, key))


def _entries(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _entries(each, (*key, name))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _entries(each, (*key, number))
    else:
        yield key, value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what classes say of numbers that are only tried."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
