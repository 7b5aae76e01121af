"""Put the bodies of higher-order wrappers, which compute nothing by themselves, into the graph that calls them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from secateur.capture.normalize.edit import attribute, is_call, unused_name

_GRAD = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"
_CHECKPOINT = "tag_activation_checkpoint"


def inline_wrappers(program: fx.GraphModule) -> bool:
    """Inline gradient-mode, checkpoint and switched-off autocast wrappers; say whether there were any.

    An autocast that is switched on changes numbers, so it stays.
    """
    inlined = False
    while (found := next(filter(None, map(_body, program.graph.nodes)), None)) is not None:
        _inline(program, *found)
        inlined = True
    return inlined


def _body(node: fx.Node) -> tuple[fx.Node, fx.Node, tuple[Any, ...]] | None:
    """The wrapper, the node of its body and the body's operands."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    if name == _GRAD:
        return node, node.args[1], node.args[2:]  # type: ignore[return-value]
    if name == _CHECKPOINT:
        return node, node.args[0], node.args[1:]  # type: ignore[return-value]
    if name == _AUTOCAST and node.args[2] is False:
        return node, node.args[4], node.args[5:]  # type: ignore[return-value]
    return None


def _inline(program: fx.GraphModule, wrapper: fx.Node, body: fx.Node, operands: tuple[Any, ...]) -> None:
    inner = attribute(program, str(body.target))
    assert isinstance(inner, fx.GraphModule)
    copies: dict[fx.Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
    with program.graph.inserting_before(wrapper):
        for node in inner.graph.nodes:
            if node.op == "output":
                _hand_over(wrapper, torch.fx.map_arg(node.args[0], copies.__getitem__))
            elif node not in copies:
                copies[node] = program.graph.node_copy(node, copies.__getitem__)
                copies[node].meta.setdefault("module", wrapper.meta.get("module", ""))
                _adopt(program, inner, copies[node])
    program.graph.erase_node(wrapper)
    if not body.users:
        program.graph.erase_node(body)


def _hand_over(wrapper: fx.Node, results: Any) -> None:
    if isinstance(results, fx.Node):
        wrapper.replace_all_uses_with(results)
        return
    for user in list(wrapper.users):
        assert is_call(user, operator.getitem)
        user.replace_all_uses_with(results[user.args[1]])
        wrapper.graph.erase_node(user)


def _adopt(program: fx.GraphModule, inner: fx.GraphModule, node: fx.Node) -> None:
    """Give the program what a copied node reads from the body's own attributes."""
    if node.op != "get_attr":
        return
    held = attribute(inner, str(node.target))
    name = unused_name(program, str(node.target).replace(".", "_"))
    if isinstance(held, Tensor) and not isinstance(held, torch.nn.Parameter):
        program.register_buffer(name, held)
    else:
        setattr(program, name, held)
    node.target = name
