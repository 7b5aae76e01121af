"""Which input sizes a model leaves open: it runs at others too, and makes the same calls at some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.capture.flat import FlatModel
from secateur.capture.record import record

Place = tuple[int, int]
"""A dimension of an input: position of the tensor, dimension."""


class OpenSizes(NamedTuple):
    """Dimensions of the inputs after the first that may vary, and inputs of other sizes."""

    places: list[Place]
    witnesses: list[list[Tensor]]
    """Inputs on which the model makes the calls that it makes on the example inputs."""
    doubts: list[list[Tensor]]
    """Inputs on which it makes other calls: a graph may refuse them, but must not give something else."""
    closed: Sequence[Place] = ()
    """Dimensions at other sizes of which the model runs, but never with the same calls."""


def open_sizes(run: FlatModel, tensors: Sequence[Tensor]) -> OpenSizes:
    """Find the sizes that may vary by running the model at others: at some of them it makes the same calls.

    Dimensions of equal size vary together first (sides of an image, ids and their mask), then each alone.
    """
    usual = _calls(run, tensors)
    found, closed = OpenSizes([], [], []), set[Place]()
    for together in groups_of(tensors):
        for group in [together] if len(together) == 1 else [together, *([place] for place in together)]:
            same, others = ([], []) if set(group) & set(found.places) else _elsewhere(run, tensors, group, usual)
            if same:
                found.places.extend(group)
                found.witnesses.extend(same)
                found.doubts.extend(others)
            elif others:
                closed.update(group)
    return found._replace(places=sorted(found.places), closed=sorted(closed - set(found.places)))


def groups_of(tensors: Sequence[Tensor]) -> list[list[Place]]:
    """Dimensions after the first, those of equal size together."""
    groups: dict[int, list[Place]] = {}
    for position, tensor in enumerate(tensors):
        for dim in range(1, tensor.dim()):
            if tensor.shape[dim] > 1:
                groups.setdefault(tensor.shape[dim], []).append((position, dim))
    return list(groups.values())


def _elsewhere(
    run: FlatModel, tensors: Sequence[Tensor], group: list[Place], usual: list[Any] | None
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Resized inputs on which the model runs with the same calls, and with others; a size between is tried where it has both."""
    same: list[list[Tensor]] = []
    others: list[list[Tensor]] = []
    for factor in (0.5, 2, 1.5):
        if factor == 1.5 and not (same and others):
            break
        changed = resized(tensors, group, factor)
        calls = None if changed is None else _calls(run, changed)
        if changed is not None and calls is not None:
            (same if calls == usual else others).append(changed)
    return same, others


def resized(tensors: Sequence[Tensor], group: Sequence[Place], factor: float) -> list[Tensor] | None:
    """The same tensors with more or less along some dimensions; ``None`` where a single position would be left."""
    found = list(tensors)
    for position, dim in group:
        size = int(tensors[position].shape[dim] * factor)
        found[position] = torch.cat([found[position]] * 2, dim).narrow(dim, 0, size).contiguous()
    return found if all(found[position].shape[dim] > 1 for position, dim in group) else None


def _calls(run: FlatModel, tensors: Sequence[Tensor]) -> list[Any] | None:
    try:
        capture = record(run, tuple(tensors))
    except Exception:  # noqa: BLE001 - a model may refuse other sizes in any way it likes
        return None
    return [node.target for node in capture.graph.nodes if node.op in ("call_function", "get_attr")]
