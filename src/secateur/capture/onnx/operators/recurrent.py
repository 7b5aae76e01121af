"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.onnx.registry import Call, Node, Weights, layer, operator
from secateur.capture.onnx.values import Value

# Where torch keeps each gate, by its place in the file: input, output, forget, cell; update, reset, hidden.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


@layer("LSTM", "GRU", "RNN", places=(1, 2, 3))
def recurrent_layer(node: Node, weights: Weights) -> nn.Module | None:
    """A layer in which the gates have torch's order."""
    inputs, hidden, biases = weights
    if inputs is None or hidden is None:
        return None
    options = _options(node)
    units = hidden.shape[-1]
    made = _LAYERS[node.operator](inputs.shape[-1], units, bias=biases is not None, bidirectional=inputs.shape[0] == 2, **options)
    for way, suffix in enumerate(("", "_reverse")[: inputs.shape[0]]):
        parts = {"weight_ih": inputs[way], "weight_hh": hidden[way]}
        if biases is not None:
            parts |= dict(zip(("bias_ih", "bias_hh"), biases[way].chunk(2), strict=True))
        for name, part in parts.items():
            setattr(made, f"{name}_l0{suffix}", nn.Parameter(_in_torch_order(part, _GATES[node.operator])))
    return made


def _options(node: Node) -> dict[str, Any]:
    kind, ways = node.operator, 2 if node.attribute("direction", "forward") == "bidirectional" else 1
    functions = [name.decode() if isinstance(name, bytes) else name for name in node.attribute("activations", _USUAL[kind] * ways)]
    if kind == "RNN" and functions == ["Relu"] * ways:
        return {"nonlinearity": "relu"}
    reasons = {
        "a direction other than forward and bidirectional": node.attribute("direction", "forward") == "reverse",
        f"the activations {functions}": functions != _USUAL[kind] * ways,
        "a clipped state": node.attribute("clip") is not None,
        "an input gate tied to the forget gate": bool(node.attribute("input_forget", 0)),
        "samples before steps (layout 1)": bool(node.attribute("layout", 0)),
        "a reset before the product (linear_before_reset 0)": kind == "GRU" and not node.attribute("linear_before_reset", 0),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise node.refuse(f"{found[0]} cannot be read")
    return {}


def _in_torch_order(stacked: Tensor, order: tuple[int, ...]) -> Tensor:
    gates = stacked.chunk(len(order))
    return torch.cat([gates[place] for place in order])


@operator("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> tuple[Value, ...]:
    """Outputs by step, way, sample and unit; then the last states."""
    if call.layer is None:
        raise call.node.refuse("weights that are computed cannot be read")
    if call.has(4) or call.has(7):
        raise call.node.refuse("lengths of single samples, or peepholes, cannot be read")
    x = call.tensor(0)
    state: Any = call.optional(5)
    if call.node.operator == "LSTM" and state is not None:
        state = (state, call.tensor(6))
    outputs, last = call.layer(x) if state is None else call.layer(x, state)
    ways = 2 if call.attribute("direction", "forward") == "bidirectional" else 1
    by_way = torch.unflatten(outputs, -1, (ways, -1)).permute(0, 2, 1, 3) if ways == 2 else outputs.unsqueeze(1)
    return (by_way, *last) if isinstance(last, tuple) else (by_way, last)
