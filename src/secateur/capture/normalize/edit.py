"""Small edits of a captured graph: new nodes that know their shape, dtype and module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import Target, map_arg

from secateur.capture.capture import Fact

aten = torch.ops.aten

Size = int | fx.Node


def is_call(node: object, *targets: Target) -> TypeGuard[fx.Node]:
    """Whether a value is a node that calls one of the given functions."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def overload(node: fx.Node) -> OpOverload | None:
    """The ATen overload that a node calls, if it calls one."""
    return node.target if node.op == "call_function" and isinstance(node.target, OpOverload) else None


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by their names in the schema, defaults filled in."""
    target = overload(node)
    assert target is not None
    found: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        found[argument.name] = given
    return found


def operands(node: object) -> tuple[Any, ...]:
    """The positional arguments of a node, as loosely typed as they are."""
    assert isinstance(node, fx.Node)
    return node.args


def mutates(node: fx.Node) -> bool:
    """Whether a call writes into one of its arguments."""
    target = overload(node)
    return target is not None and target._schema.is_mutable


def fact(node: object) -> Fact:
    """What is known of the tensor that a node computes."""
    assert isinstance(node, fx.Node)
    found = node.meta["fact"]
    assert isinstance(found, Fact), f"{node} computes no single tensor"
    return found


def shape(node: object) -> tuple[int, ...]:
    """The shape of a node's tensor in the captured run."""
    return fact(node).shape


def shapes(node: object) -> list[tuple[int, ...]]:
    """The shapes of a node's tensor in the captured run and, for a dynamic graph, in runs with other sizes as far as known."""
    assert isinstance(node, fx.Node)
    return [shape(node), *(variant.shape for variant in node.meta.get("variants", []))]


def symbolic(node: object, dim: int) -> bool:
    """Whether a dimension follows the size of an input; where nothing is known of a dynamic graph, it may."""
    assert isinstance(node, fx.Node)
    if node.op == "get_attr" or not _is_dynamic(node):
        return False
    return "variants" not in node.meta or any(each[dim] != shape(node)[dim] for each in shapes(node))


def follows(number: object) -> bool:
    """Whether a number may follow the sizes of the inputs: it is computed from such a size, or from what is in a tensor."""
    if not isinstance(number, fx.Node) or not _is_dynamic(number):
        return False
    if number.target is aten.sym_size.int:
        return symbolic(number.args[0], int(str(number.args[1])))
    if isinstance(number.meta.get("fact"), Fact):
        return True
    return any(follows(source) for source in number.all_input_nodes)


def alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two tensors have the same shape in all runs; those with other sizes must be known where sizes may follow the inputs."""
    known = all("variants" in node.meta or static(node) for node in (one, other))
    return known and shapes(one) == shapes(other)


def _is_dynamic(node: fx.Node) -> bool:
    program = node.graph.owning_module
    return program is not None and bool(program.meta.get("dynamic", False))


def static(node: object, dims: Sequence[int] | None = None) -> bool:
    """Whether the given dimensions (all, if none are given) have one fixed size each."""
    return not any(symbolic(node, dim) for dim in (range(len(shape(node))) if dims is None else dims))


def emit(before: fx.Node, target: Callable[..., Any], *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
    """Insert a call before a node; it belongs to the module of ``like``."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    node.meta["module"] = like.meta.get("module", "")
    infer(node)
    return node


def infer(node: fx.Node) -> None:
    """Find shape and dtype of a new call from those of its arguments, without computing it."""
    with torch.no_grad():
        node.meta["fact"] = describe(call(node, lambda source: stand_in(source.meta["fact"])))
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        known = min((len(source.meta.get("variants", [])) for source in sources), default=0)
        if known:
            node.meta["variants"] = [describe(call(node, _variants(index))) for index in range(known)]


def call(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """Call what a node calls, with values in place of its argument nodes."""
    assert callable(node.target)
    return node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))


def describe(value: Any) -> Any:
    """The fact of a tensor, a list of facts of several, or the plain value."""
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return Fact(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _variants(index: int) -> Callable[[fx.Node], Any]:
    return lambda source: stand_in(source.meta["variants"][index] if "variants" in source.meta else source.meta["fact"])


def stand_in(known: Any) -> Any:
    """A tensor without content of a known shape and dtype, a list of such, or the plain value."""
    if isinstance(known, list):
        return [stand_in(item) for item in known]
    return torch.empty(known.shape, dtype=known.dtype, device="meta") if isinstance(known, Fact) else known


def sizes(node: fx.Node, before: fx.Node) -> list[Size]:
    """The sizes of a node's tensor, as numbers where they are fixed and as nodes where they follow an input."""
    return [size_of(node, dim, before) for dim in range(len(shape(node)))]


def size_of(node: fx.Node, dim: int, before: fx.Node) -> Size:
    """One size of a node's tensor, as a number if it is fixed, else as a node."""
    return emit(before, aten.sym_size.int, node, dim, like=before) if symbolic(node, dim) else shape(node)[dim]


def attribute(program: torch.nn.Module, name: str) -> Any:
    """The tensor or module of that qualified name."""
    owner, _, last = name.rpartition(".")
    return getattr(program.get_submodule(owner), last)


def unused_name(program: torch.nn.Module, name: str) -> str:
    """The name itself if nothing is called so yet, else the name with the first free number."""
    owner, _, last = name.rpartition(".")
    holder = program.get_submodule(owner)
    free, number = last, 0
    while hasattr(holder, free):
        number += 1
        free = f"{last}_{number}"
    return f"{owner}.{free}" if owner else free


def leaf(program: fx.GraphModule, name: str, tensor: Tensor, before: fx.Node) -> fx.Node:
    """Store a tensor under a qualified name and insert a node that reads it."""
    owner, _, last = name.rpartition(".")
    holder = program.get_submodule(owner)
    if isinstance(tensor, torch.nn.Parameter):
        holder.register_parameter(last, tensor)
    else:
        holder.register_buffer(last, tensor)
    with program.graph.inserting_before(before):
        node = program.graph.get_attr(name)
    node.meta["module"] = owner
    node.meta["fact"] = Fact(tuple(tensor.shape), tensor.dtype, None if isinstance(tensor, torch.nn.Parameter) else tensor)
    return node


def positive(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim + rank if dim < 0 else dim
