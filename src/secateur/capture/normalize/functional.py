"""Turn in-place operators into functional ones, with every later read of the memory that they wrote."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import map_arg

from secateur.capture.capture import Fact
from secateur.capture.normalize.aliases import Aliases
from secateur.capture.normalize.edit import alike, aten, emit, fact, infer, is_call, mutates, operands, overload, shape, sizes, static


def functionalise(program: fx.GraphModule) -> bool:
    """Replace in-place operators; say whether the graph is free of them now.

    A write through a view builds the whole memory anew (``slice_scatter`` and the like) where anything reads it later.
    Memory that is written in a way which is not understood keeps all its in-place operators.
    """
    if any(map(mutates, program.graph.nodes)):
        _Functionaliser(program, Aliases(program)).run()
    return not any(map(mutates, program.graph.nodes))


class _Functionaliser:
    """Walks the graph once and keeps, for each piece of memory, the node that holds its content now."""

    def __init__(self, program: fx.GraphModule, aliases: Aliases) -> None:
        self.nodes = list(program.graph.nodes)
        self.order = {node: position for position, node in enumerate(self.nodes)}
        self.parent = aliases.parent
        self.same = aliases.same
        self.writes: dict[fx.Node, int] = {}
        self.seen: dict[fx.Node, tuple[int, fx.Node]] = {}
        self.refused = {root for node in self.nodes if mutates(node) for root in self._refusals(node)}

    def run(self) -> None:
        for node in self.nodes:
            if mutates(node) and not self.refused & {self._root(source) for source in _written(node)}:
                self._write(node)
            else:
                self._refresh(node)
            self.seen.setdefault(node, (self._version(node), node))

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.parent:
            node = self.parent[node]
        return node

    def _version(self, node: fx.Node) -> int:
        return self.writes.get(self._root(node), 0)

    def _refusals(self, node: fx.Node) -> set[fx.Node]:
        """The memory that has to keep its in-place operators because of this one."""
        roots = {self._root(source) for source in _written(node)}
        if _functional(node) is None:
            return roots
        return set() if self._rebuildable(node.args[0]) or not self._read_elsewhere(node) else roots

    def _rebuildable(self, node: Any) -> bool:
        while node in self.parent:
            if node not in self.same and not is_call(node, operator.getitem) and node.target not in _SCATTERS:
                return False
            if is_call(node, operator.getitem) and not _has_known_parts(self.parent[node]):
                return False
            node = self.parent[node] if not is_call(node, operator.getitem) else self.parent[self.parent[node]]
        return True

    def _read_elsewhere(self, node: fx.Node) -> bool:
        """Whether anything after a write reads the memory other than through the view that was written."""
        view, root = node.args[0], self._root(node)
        others = [each for each in self.nodes if self._root(each) is root and not self._passes(each, view)]
        return any(self.order[user] > self.order[node] for each in others for user in each.users)

    def _passes(self, node: fx.Node, view: Any) -> bool:
        while node is not view and node in self.parent:
            node = self.parent[node]
        return node is view

    def _read(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """The node that holds what ``node`` would show if it were looked at now."""
        if self._root(node) in self.refused:
            return node
        version, current = self.seen.get(node, (0, node))
        if version == self._version(node):
            return current
        source = self._read(self.parent[node], reader)
        current = source if node in self.same else _again(node, self.parent[node], source, reader)
        self.seen[node] = (self._version(node), current)
        return current

    def _refresh(self, node: fx.Node) -> None:
        """Let a node read what its arguments show now."""
        if any(self._read(source, node) is not source for source in node.all_input_nodes):
            node.args = map_arg(node.args, lambda source: self._read(source, node))
            node.kwargs = map_arg(node.kwargs, lambda source: self._read(source, node))

    def _write(self, node: fx.Node) -> None:
        view = node.args[0]
        assert isinstance(view, fx.Node)
        self.parent[node] = view
        self.same.add(node)
        after = node.next
        source = node.args[1] if is_call(node, aten.copy_.default) else None
        node.target = _functional(node)  # type: ignore[assignment]
        self._refresh(node)
        value = _like(view, node, after)
        if isinstance(source, fx.Node) and isinstance(node.args[1], fx.Node) and self._replaces(view, source):
            value = node.args[1]
        if not self._rebuildable(view):
            version = self._version(view) + 1
            del self.parent[view]
            self.writes[view] = version
            self.seen[view] = self.seen[node] = (version, value)
            return
        self._rebuild(view, value, after)
        self.seen[node] = (self._version(node), value)

    def _replaces(self, view: fx.Node, source: fx.Node) -> bool:
        """Whether a copy is nothing but its source."""
        return fact(view) == fact(source) and alike(view, source) and self._root(source) not in self.refused

    def _rebuild(self, view: fx.Node, value: fx.Node, after: fx.Node) -> None:
        """Note a view's new content and build that of everything it is a view of."""
        root, version = self._root(view), self._version(view) + 1
        contents = [(view, value)]
        while view in self.parent:
            step, view = view, self.parent[view]
            if is_call(step, operator.getitem) and isinstance(view.meta["fact"], list):
                parts, view = view, self.parent[view]
                value = _scatter_part(self._read(view, after), value, parts, operands(step)[1], after)
            elif step not in self.same:
                value = _scatter(self._read(view, after), value, step, after)
            contents.append((view, value))
        self.writes[root] = version
        self.seen.update({each: (version, content) for each, content in contents})


def _has_known_parts(node: fx.Node) -> bool:
    """Whether a call cuts a tensor into parts of fixed sizes."""
    if is_call(node, aten.split_with_sizes.default):
        return all(isinstance(length, int) for length in operands(node)[1])
    return is_call(node, aten.unbind.int)


def _written(node: fx.Node) -> list[fx.Node]:
    """The arguments that a call writes into; all of them if it writes more than its first."""
    target = overload(node)
    assert target is not None
    writes = [argument.alias_info is not None and argument.alias_info.is_write for argument in target._schema.arguments]
    first = node.args[0] if node.args else None
    if writes[0] and not any(writes[1:]) and isinstance(first, fx.Node):
        return [first]
    return node.all_input_nodes


def _functional(node: fx.Node) -> OpOverload | None:
    """The overload that computes what an in-place call writes into its first argument."""
    target = overload(node)
    assert target is not None
    name = target._schema.name.removeprefix("aten::")
    if (
        not name.endswith("_")
        or not node.args
        or any(each.alias_info and each.alias_info.is_write for each in target._schema.arguments[1:])
    ):
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    found = [getattr(packet, each) for each in packet.overloads()] if packet is not None else []
    return next((each for each in found if _signature(each) == _signature(target) and _makes_one(each)), None)


def _signature(target: OpOverload) -> list[Any]:
    """The types of an operator's arguments, and the names of all but the first, which is called differently here and there."""
    arguments = target._schema.arguments
    return [*(str(each.type) for each in arguments), *(each.name for each in arguments[1:])]


def _makes_one(target: OpOverload) -> bool:
    returns = target._schema.returns
    return not target._schema.is_mutable and len(returns) == 1 and returns[0].alias_info is None


def _again(node: fx.Node, old: fx.Node, new: fx.Node, before: fx.Node) -> fx.Node:
    """The same view of another tensor."""
    with node.graph.inserting_before(before):
        return node.graph.node_copy(node, lambda source: new if source is old else source)


def _like(view: fx.Node, node: fx.Node, after: fx.Node) -> fx.Node:
    """A written value in the dtype of the memory that it is written to."""
    dtypes = {known.dtype for source in node.all_input_nodes if isinstance(known := source.meta["fact"], Fact)}
    promotes = len(dtypes) > 1 or not fact(view).dtype.is_floating_point
    if promotes and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        infer(node)
    if fact(node).dtype == fact(view).dtype:
        return node
    return emit(after, aten.to.dtype, node, fact(view).dtype, like=node)


def _scatter(base: fx.Node, value: fx.Node, step: fx.Node, after: fx.Node) -> fx.Node:
    if shape(base) == shape(value) and step.target in (aten.slice.Tensor, aten.expand.default) and static(base) and len(step.args) < 5:
        return value
    return _SCATTERS[step.target](base, value, step, after)


def _scatter_slice(base: fx.Node, value: fx.Node, step: fx.Node, after: fx.Node) -> fx.Node:
    return emit(after, aten.slice_scatter.default, base, value, *operands(step)[1:], like=step)


def _scatter_select(base: fx.Node, value: fx.Node, step: fx.Node, after: fx.Node) -> fx.Node:
    return emit(after, aten.select_scatter.default, base, value, *operands(step)[1:], like=step)


def _scatter_permute(base: fx.Node, value: fx.Node, step: fx.Node, after: fx.Node) -> fx.Node:
    dims = list(operands(step)[1])
    return emit(after, aten.permute.default, value, [dims.index(dim) for dim in range(len(dims))], like=step)


def _scatter_reshape(base: fx.Node, value: fx.Node, step: fx.Node, after: fx.Node) -> fx.Node:
    return emit(after, aten.reshape.default, value, sizes(base, after), like=step)


def _scatter_part(base: fx.Node, value: fx.Node, parts: fx.Node, index: int, after: fx.Node) -> fx.Node:
    if is_call(parts, aten.unbind.int):
        return emit(after, aten.select_scatter.default, base, value, operands(parts)[1], index, like=parts)
    _, lengths, dim = operands(parts)
    start = [0, *accumulate(lengths)][index]
    return emit(after, aten.slice_scatter.default, base, value, dim, start, start + lengths[index], like=parts)


_SCATTERS: dict[Any, Callable[[fx.Node, fx.Node, fx.Node, fx.Node], fx.Node]] = {
    aten.slice.Tensor: _scatter_slice,
    aten.select.int: _scatter_select,
    aten.permute.default: _scatter_permute,
    aten.reshape.default: _scatter_reshape,
    aten.squeeze.dim: _scatter_reshape,
    aten.squeeze.dims: _scatter_reshape,
    aten.unsqueeze.default: _scatter_reshape,
}
