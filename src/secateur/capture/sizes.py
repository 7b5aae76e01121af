"""Which input sizes a model leaves open: it runs at others too, and makes the same calls there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.capture.flat import FlatModel
from secateur.capture.record import record

Place = tuple[int, int]
"""A dimension of an input: position of the tensor, dimension."""


def open_sizes(run: FlatModel, tensors: Sequence[Tensor]) -> tuple[list[Place], list[list[Tensor]]]:
    """Return the dimensions after the first that may vary, and inputs of other sizes that show it.

    Dimensions of equal size vary together first (sides of an image, ids and their mask), then each alone.
    """
    usual = _calls(run, tensors)
    places: list[Place] = []
    witnesses: list[list[Tensor]] = []
    for together in _groups(tensors):
        for group in [together] if len(together) == 1 else [together, *([place] for place in together)]:
            seen = [] if set(group) & set(places) else _same_elsewhere(run, tensors, group, usual)
            if seen:
                places += group
                witnesses += seen
    return sorted(places), witnesses


def _groups(tensors: Sequence[Tensor]) -> list[list[Place]]:
    groups: dict[int, list[Place]] = {}
    for position, tensor in enumerate(tensors):
        for dim in range(1, tensor.dim()):
            if tensor.shape[dim] > 1:
                groups.setdefault(tensor.shape[dim], []).append((position, dim))
    return list(groups.values())


def _same_elsewhere(run: FlatModel, tensors: Sequence[Tensor], group: list[Place], usual: list[Any] | None) -> list[list[Tensor]]:
    """Return the resized inputs on which the model runs, or none if it makes other calls on some of them."""
    seen: list[list[Tensor]] = []
    for resized in _resized(tensors, group):
        calls = _calls(run, resized)
        if calls is not None and calls != usual:
            return []
        seen += [resized] if calls is not None else []
    return seen


def _resized(tensors: Sequence[Tensor], group: list[Place]) -> Iterator[list[Tensor]]:
    for factor in (0.5, 2):
        resized = list(tensors)
        for position, dim in group:
            size = int(tensors[position].shape[dim] * factor)
            resized[position] = torch.cat([resized[position]] * 2, dim).narrow(dim, 0, size).contiguous()
        if all(resized[position].shape[dim] > 1 for position, dim in group):
            yield resized


def _calls(run: FlatModel, tensors: Sequence[Tensor]) -> list[Any] | None:
    try:
        capture = record(run, tuple(tensors))
    except Exception:  # noqa: BLE001 - a model may refuse other sizes in any way it likes
        return None
    return [node.target for node in capture.graph.nodes if node.op in ("call_function", "get_attr")]
