"""Bytes that a model's weights and activations take."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from secateur.capture.capture import Fact
from secateur.measure.formulas import operator_name
from secateur.measure.macs import is_view

_PASS_THROUGH = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
"""Operators that hand their input on in evaluation, though their schema promises a tensor of its own."""


def distinct(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Give each tensor once, however many names or views of all its elements it has."""
    seen: set[tuple[Any, ...]] = set()
    for tensor in tensors:
        key = (_storage(tensor), tensor.storage_offset(), tensor.shape)
        if key not in seen:
            seen.add(key)
            yield tensor


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, those that are tied counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct([*model.parameters(), *model.buffers()]))


def peak_activation_bytes(graph: fx.Graph) -> int:
    """The most bytes that inputs, intermediate tensors and outputs take at one time in a captured graph."""
    return max(live_bytes(graph).values(), default=0)


def live_bytes(graph: fx.Graph) -> dict[str, int]:
    """Bytes of activations that are alive while each node runs, by the node's name.

    A tensor lives from the node that makes it to the last one that reads it or a view of it; the caller holds the inputs
    throughout, and the outputs live to the end. Weights and their views are not activations. Every tensor that an operator
    makes is taken as laid out row by row; what an operator needs inside itself is not known and not counted.
    """
    nodes = list(graph.nodes)
    tensors = _layouts(nodes)
    last = len(nodes) - 1
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for time, node in enumerate(nodes):
        for storage in _touched(node, tensors):
            begins.setdefault(storage, time)
            ends[storage] = last if node.op == "placeholder" else max(time, ends.get(storage, 0))
    sizes = _sizes(tensors)
    steps = [0] * (len(nodes) + 1)
    for storage, time in begins.items():
        steps[time] += sizes.get(storage, 0)
        steps[ends[storage] + 1] -= sizes.get(storage, 0)
    return dict(zip((node.name for node in nodes), accumulate(steps), strict=False))


def _touched(node: fx.Node, tensors: dict[fx.Node, Any]) -> set[int]:
    return {_storage(tensor) for source in (node, *node.all_input_nodes) for tensor in _tensors(tensors[source])}


def _sizes(tensors: dict[fx.Node, Any]) -> dict[int, int]:
    """Bytes of every storage that is no weight's."""
    weights = {_storage(value) for node, value in tensors.items() if node.op == "get_attr"}
    found = {_storage(tensor): tensor.untyped_storage().nbytes() for value in tensors.values() for tensor in _tensors(value)}
    return {storage: size for storage, size in found.items() if storage not in weights}


def _layouts(nodes: Iterable[fx.Node]) -> dict[fx.Node, Any]:
    """A tensor without data for every tensor in the graph; those that share memory there share a storage here."""
    tensors: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in nodes:
            tensors[node] = None if node.op == "output" else _layout(node, tensors)
    return tensors


def _layout(node: fx.Node, tensors: dict[fx.Node, Any]) -> Any:
    if node.target is operator.getitem:
        source, index = node.args
        assert isinstance(source, fx.Node)
        return tensors[source][index]
    if isinstance(node.target, torch._ops.OpOverload) and node.op == "call_function":
        if _writes(node.target):
            return tensors[node.all_input_nodes[0]]
        if is_view(node.target) or operator_name(node.target) in _PASS_THROUGH:
            return _view(node, tensors)
    return _fresh(node.meta["fact"])


def _view(node: fx.Node, tensors: dict[fx.Node, Any]) -> Any:
    """Ask torch whether the call copies: a reshape does or does not, as its input lies in memory.

    A view that only the input's true place in memory allows is taken for a copy.
    """

    def argument(value: Any) -> Any:
        return torch.device("meta") if isinstance(value, torch.device) else tensors[value] if isinstance(value, fx.Node) else value

    args, kwargs = pytree.tree_map(argument, (list(node.args), dict(node.kwargs)))
    assert isinstance(node.target, torch._ops.OpOverload)
    try:
        return node.target(*args, **kwargs)
    except RuntimeError:
        return _fresh(node.meta["fact"])


def _writes(target: torch._ops.OpOverload) -> bool:
    aliases = [value.alias_info for value in target._schema.returns]
    return any(alias is not None and alias.is_write for alias in aliases)


def _fresh(fact: Any) -> Any:
    def tensor(value: Any) -> Any:
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Fact) else value

    return pytree.tree_map(tensor, fact)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
