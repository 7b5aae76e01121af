"""Graphs that torch runs unchecked."""

from __future__ import annotations

import torch
from torch import fx, nn

_RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")


def starts_from_inputs(model: nn.Module) -> bool:
    """Whether a graph's recurrent calls start from states that the caller gives.

    The operators read a state unchecked, past its end where it has fewer samples than the input, so such a graph must not be tried
    on sizes that may not belong together.
    """
    if not isinstance(model, fx.GraphModule):
        return False
    calls = [n for n in model.graph.nodes if isinstance(n.target, torch._ops.OpOverload) and str(n.target.overloadpacket) in _RECURRENT]
    return any(_given(state) for call in calls for state in _nodes(call.args[1]))


def _nodes(value: object) -> list[fx.Node]:
    listed = value if isinstance(value, list | tuple) else [value]
    return [each for each in listed if isinstance(each, fx.Node)]


def _given(state: fx.Node) -> bool:
    """Whether a value comes from an input, and not only from its sizes."""
    waiting, seen = [state], {state}
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        sources = set() if "sym_size" in str(node.target) else set(node.all_input_nodes) - seen
        seen |= sources
        waiting += sources
    return False
