"""Where in the activations of a model the channels of a group lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from secateur.capture.capture import Fact
from secateur.groups.fields import NONE, Labels
from secateur.groups.group import ChannelGroup
from secateur.groups.ledger import Role
from secateur.groups.solve import Solution


@dataclass(frozen=True, eq=False)
class Place:
    """The channels of a group in the output of one node."""

    node: fx.Node
    channels: Labels
    """The channel at each position of the tensor, of size 1 along dimensions in which it does not change; -1 for none."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions along which the channel changes."""
        return tuple(d for d, size in enumerate(self.channels.shape) if size > 1)

    def rows(self, values: Tensor) -> tuple[Labels, Tensor]:
        """The channel of each position, and the values there: shapes ``(positions,)`` and ``(positions, *other dimensions)``."""
        dims, flat = self.dims, self.channels.reshape(-1)
        table = values.movedim(dims, tuple(range(len(dims)))).reshape(flat.size, *(n for d, n in enumerate(values.shape) if d not in dims))
        there = np.flatnonzero(flat >= 0)
        return flat[there], table[torch.as_tensor(there, device=values.device)]


def places(group: ChannelGroup, solution: Solution, role: Role) -> Iterator[Place]:
    """The nodes at which channels of a group play a role, in the order of the graph, with their places in the output."""
    number = numbers(group, solution)
    for node in _nodes(number, solution, role):
        place = place_of(node, number, solution)
        if place is not None:
            yield place


def product_nodes(group: ChannelGroup, solution: Solution) -> list[fx.Node]:
    """The nodes that multiply two activations and sum over channels of the group."""
    return _nodes(numbers(group, solution), solution, "dot")


def place_of(node: fx.Node, number: Labels, solution: Solution) -> Place | None:
    """The places of channels in a node's one output; ``number`` gives the channel of each class."""
    if not isinstance(node.meta.get("fact"), Fact):
        return None
    for field in solution.walk.tensor_fields(node):
        if not field.block and field.dims:
            channels = np.where(field.labels == NONE, -1, number[solution.classes[field.labels]])
            if (channels >= 0).any():
                return Place(node, channels)
    return None


def batch_dim(shape: tuple[int, ...], taken: tuple[int, ...], batch: int) -> int | None:
    """The dimension that runs over samples: the first as long as the batch, else the first that holds a multiple of it."""
    free = [d for d in range(len(shape)) if d not in taken]
    exact = [d for d in free if shape[d] == batch]
    multiple = [d for d in free if shape[d] % batch == 0]
    return next(iter([*exact, *multiple, *free]), None)


def numbers(group: ChannelGroup, solution: Solution) -> Labels:
    """The channel of each class, -1 for classes of other groups."""
    number = np.full(solution.count, -1, dtype=np.int64)
    number[group.classes] = np.arange(group.size)
    return number


def _nodes(number: Labels, solution: Solution, role: Role) -> list[fx.Node]:
    names = {
        node
        for labels, found, node in solution.ledger.roles
        if found == role and (number[solution.classes[labels[labels != NONE]]] >= 0).any()
    }
    return [n for n in solution.walk.capture.graph.nodes if n.name in names]
