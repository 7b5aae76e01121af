"""Where channels of a group are read: the calls that sum over them, and what goes in there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.observer import Call
from secateur.score.places import Place, batch_dim, numbers, place_of, places, product_nodes
from secateur.score.products import product_at


@dataclass(frozen=True, eq=False)
class Reading:
    """One call that reads channels of a group."""

    node: fx.Node
    source: Place
    """The channels in what goes in."""
    weight: str | None
    """The weight that reads them; ``None`` where two activations are multiplied."""
    other: Place | None = None
    """The channels in the second activation."""


def readings(group: ChannelGroup, solution: Solution) -> Iterator[Reading]:
    """The calls that read channels of a group: layers, and products of two activations."""
    number = numbers(group, solution)
    for node in product_nodes(group, solution):
        product = product_at(node)
        sides = [place_of(n, number, solution) for n in (product.query, product.key)] if product else []
        if len(sides) == 2 and sides[0] is not None and sides[1] is not None:
            yield Reading(node, sides[0], None, sides[1])
    reading = {node for labels, role, node in solution.ledger.roles if role == "reads" and _of_group(labels, number, solution)}
    for node in solution.walk.capture.graph.nodes:
        if node.name in reading:
            inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
            weights = {m.tensor for m in group.members if m.role == "reads"}
            weight = next((str(n.target) for n in node.all_input_nodes if n.op == "get_attr" and str(n.target) in weights), None)
            source = place_of(inputs[0], number, solution) if inputs else None
            if source is not None and weight is not None:
                yield Reading(node, source, weight)


def made(group: ChannelGroup, solution: Solution) -> list[Place]:
    """Where the channels of a group go into the calls that read them, each place once; where they are made if nobody reads them."""
    found = {reading.source.node: reading.source for reading in readings(group, solution)}
    return list(found.values()) or list(places(group, solution, "writes"))


def rows(place: Place, values: Tensor, call: Call, size: int) -> Tensor:
    """Values as ``(size, samples, positions)``: one row for each channel, positions of one channel side by side."""
    dim = batch_dim(tuple(values.shape), place.dims, call.batch)
    if dim is None:
        values, dim = values.unsqueeze(-1), values.ndim
    kept = values.narrow(dim, 0, max(1, values.shape[dim] * call.valid // call.batch))
    channels, table = place.rows(kept)
    at = 1 + dim - sum(d < dim for d in place.dims)
    table = table.movedim(at, 1).reshape(len(channels), kept.shape[dim], -1)
    counts = np.bincount(channels, minlength=size)
    if counts.max(initial=0) <= 1:
        return table.new_zeros(size, *table.shape[1:]).index_copy_(0, torch.as_tensor(channels, device=table.device), table)
    return _side_by_side(table, channels, counts)


def _side_by_side(table: Tensor, channels: np.ndarray, counts: np.ndarray) -> Tensor:
    """Several positions a channel, as behind a flatten: those of fewer are filled up with zeros."""
    order = np.argsort(channels, kind="stable")
    within = np.arange(len(order)) - np.searchsorted(channels[order], channels[order])
    out = table.new_zeros(len(counts), int(counts.max()), *table.shape[1:])
    out[torch.as_tensor(channels[order]), torch.as_tensor(within)] = table[torch.as_tensor(order)]
    return out.movedim(1, 2).flatten(2)


def _of_group(labels: np.ndarray, number: np.ndarray, solution: Solution) -> bool:
    real = labels[labels >= 0]
    return bool((number[solution.classes[real]] >= 0).any())
