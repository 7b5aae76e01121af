"""Store weights that a model computes from its parameters with statistics over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from secateur.capture.normalize.edit import aten, attribute, fact, is_call, leaf, mutates, operands, overload, shape, unused_name

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
    """Store a computed weight; its node's meta holds the ``exact`` value before rounding and the ``parts`` that it is made of."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for step in steps:
            values[step] = attribute(program, str(step.target)) if step.op == "get_attr" else _called(step, values)
    parameters = [step for step in steps if step.op == "get_attr" and isinstance(values[step], torch.nn.Parameter)]
    origin = max(parameters or [step for step in steps if step.op == "get_attr"], key=lambda step: values[step].numel())
    name = unused_name(program, _name(str(origin.target)))
    rounded = values[weight].to(fact(weight).dtype)
    stored: Tensor = torch.nn.Parameter(rounded, requires_grad=any(values[each].requires_grad for each in parameters))
    node = leaf(program, name, stored, weight)
    node.meta |= {"exact": values[weight], "parts": tuple(str(step.target) for step in steps if step.op == "get_attr")}
    weight.replace_all_uses_with(node)
    return name, str(origin.target)


def _called(step: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """What a call returns in double precision."""
    args, kwargs = map_aggregate((step.args, step.kwargs), lambda each: _wide(values[each] if isinstance(each, fx.Node) else each))
    assert callable(step.target)
    return step.target(*args, **kwargs)


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _name(origin: str) -> str:
    """The name that a module gives to a parametrised weight, or one beside that of the parameter."""
    module, parametrised, rest = origin.partition("parametrizations.")
    return f"{module}{rest.partition('.')[0]}" if parametrised else f"{origin}_folded"
