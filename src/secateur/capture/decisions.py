"""Who has a say in what Python looked at while a model was recorded."""

from __future__ import annotations

from torch import fx

from secateur.capture.capture import Capture
from secateur.capture.facts import CONSTANT_PREFIX
from secateur.capture.values import looks


def weights_decide(capture: Capture) -> bool:
    """Whether weights have a say in what Python looked at during a capture; if inputs alone have, a smaller model decides alike."""
    waiting = [node for node in capture.graph.nodes if node.op == "call_function" and looks(node)] if capture.decided else []
    seen: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node.op == "get_attr" and not str(node.target).startswith(CONSTANT_PREFIX):
            return True
        waiting += [operand for operand in node.all_input_nodes if operand not in seen]
        seen.update(node.all_input_nodes)
    return False
