"""Store weights that a model computes from its parameters with statistics over them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.capture.normalize.edit import aten, attribute, is_call, leaf, mutates, operands, overload, shape, unused_name
from secateur.capture.program import as_program

_CONSUMERS = (
    aten.linear.default,
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.convolution.default,
)
_STATISTICS = frozenset(
    {
        "_softmax",
        "_weight_norm",
        "_weight_norm_interface",
        "amax",
        "amin",
        "batch_norm",
        "dot",
        "frobenius_norm",
        "group_norm",
        "instance_norm",
        "layer_norm",
        "linalg_matrix_norm",
        "linalg_norm",
        "linalg_vector_norm",
        "log_softmax",
        "logsumexp",
        "mean",
        "mv",
        "norm",
        "rms_norm",
        "softmax",
        "std",
        "std_mean",
        "sum",
        "var",
        "var_mean",
        "vdot",
    }
)


def fold_weights(program: fx.GraphModule) -> list[tuple[str, str]]:
    """Replace weights that depend on means, norms or the like over parameters (weight standardisation) by their values.

    Fewer channels would change such statistics, and with them every weight that stays. Returns the names of the stored weights,
    each with the name of the parameter it was computed from. Weights that are computed element by element stay computed.
    """
    consumers = [node for node in program.graph.nodes if is_call(node, *_CONSUMERS)]
    return [_fold(program, operands(node)[1], steps) for node in consumers if (steps := _computed(operands(node)[1]))]


def mark_stand_ins(program: fx.GraphModule, folded: Sequence[tuple[str, str]]) -> None:
    """Write down which stored weights may take the name of their parameter: those whose parameter is read no more and has their shape."""
    nodes = {str(node.target): node for node in program.graph.find_nodes(op="get_attr")}
    for name, origin in folded:
        alike = name == f"{origin}_folded" and attribute(program, name).shape == attribute(program, origin).shape
        if alike and origin not in nodes:
            nodes[name].meta["stands_for"] = origin


def computed_from(node: fx.Node) -> tuple[str, ...]:
    """The names of the tensors that a stored weight was computed from; none for any other node."""
    recipe = node.meta.get("recipe")
    return () if recipe is None else tuple(str(each.target) for each in recipe.graph.find_nodes(op="get_attr"))


def folded_names(graph: fx.Graph) -> list[str]:
    """The names of all weights that were stored in the place of what computes them."""
    return [str(node.target) for node in graph.find_nodes(op="get_attr") if computed_from(node)]


def stand_ins(graph: fx.Graph) -> dict[str, str]:
    """By stored weights, the parameters that each was computed from, where no call reads these any more and the shapes are equal.

    A graph that is built anew calls the weight as the model calls the parameter.
    """
    return {str(n.target): n.meta["stands_for"] for n in graph.find_nodes(op="get_attr") if "stands_for" in n.meta}


def _computed(weight: Any) -> list[fx.Node]:
    """The nodes that compute a weight, in order, if they read stored tensors alone and hold statistics of them."""
    if not isinstance(weight, fx.Node) or weight.op != "call_function" or len(weight.users) != 1:
        return []
    found, waiting = {weight}, [weight]
    while waiting:
        node = waiting.pop()
        if node.op not in ("call_function", "get_attr") or mutates(node):
            return []
        waiting += [source for source in node.all_input_nodes if source not in found]
        found.update(node.all_input_nodes)
    return [node for node in weight.graph.nodes if node in found] if any(map(_is_statistic, found)) else []


def _is_statistic(node: fx.Node) -> bool:
    target = overload(node)
    if target is None or target._schema.name.removeprefix("aten::") not in _STATISTICS:
        return False
    return any(size > 1 for size in shape(node.args[0]))


def _fold(program: fx.GraphModule, weight: fx.Node, steps: list[fx.Node]) -> tuple[str, str]:
    """Store a computed weight; the node's meta keeps the ``recipe``: a program that computes it, without inputs."""
    recipe = _recipe(program, weight, steps)
    with torch.no_grad():
        (value,) = fx.Interpreter(recipe).run()
    leaves = {str(step.target): attribute(program, str(step.target)) for step in steps if step.op == "get_attr"}
    parameters = {name: tensor for name, tensor in leaves.items() if isinstance(tensor, torch.nn.Parameter)}
    origin = max(parameters or leaves, key=lambda name: leaves[name].numel())
    name = unused_name(program, weight_name(origin, leaves))
    stored: Tensor = torch.nn.Parameter(value, requires_grad=any(each.requires_grad for each in parameters.values()))
    node = leaf(program, name, stored, weight)
    node.meta["recipe"] = recipe
    weight.replace_all_uses_with(node)
    return name, origin


def _recipe(program: fx.GraphModule, weight: fx.Node, steps: list[fx.Node]) -> fx.GraphModule:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for step in steps:
        copies[step] = graph.node_copy(step, copies.__getitem__)
    graph.output((copies[weight],))
    return as_program(program, graph)


def weight_name(origin: str, leaves: Container[str]) -> str:
    """The name that a layer gives to the weight that it computes, or one beside that of the parameter."""
    module, parametrised, rest = origin.partition("parametrizations.")
    if parametrised:
        return f"{module}{rest.partition('.')[0]}"
    plain = origin.removesuffix("_v")
    return plain if plain != origin and f"{plain}_g" in leaves else f"{origin}_folded"
