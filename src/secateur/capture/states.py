"""Initial states of recurrent operators, which torch reads unchecked.

``nn.LSTM`` and its like look at the sizes of a state; the operators behind them read past its end where it has fewer samples or
layers than they need, and end the process. So graphs of such calls are only run on sizes that belong together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import CaptureError

_RECURRENT = ("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")
# Parts of the names of operators that read sizes and type of a tensor, and not what it holds.
_SIZES_ALONE = ("sym_size", "aten.new_", "_like")


def check_states(target: Any, args: tuple[Any, ...]) -> None:
    """Raise :class:`CaptureError` if a call of a recurrent operator has an initial state of another size than it needs."""
    if str(target) not in _RECURRENT:
        return
    x, states, _, _, layers, _, _, both, batch_first = args
    samples = x.shape[0 if batch_first else 1] if x.dim() == 3 else None
    needed = (layers * (2 if both else 1), *([] if samples is None else [samples]))
    for state in _tensors(states):
        if tuple(state.shape[:-1]) != needed:
            raise CaptureError(f"{target} starts from a state of sizes {tuple(state.shape)}; it needs {(*needed, state.shape[-1])}.")


def starts_from_inputs(model: nn.Module) -> bool:
    """Whether a graph's recurrent calls start from states that the caller gives."""
    if not isinstance(model, fx.GraphModule):
        return False
    calls = [node for node in model.graph.nodes if str(node.target) in _RECURRENT]
    return any(_given(state) for call in calls for state in _nodes(call.args[1]))


def _tensors(states: Any) -> list[Tensor]:
    return [states] if isinstance(states, torch.Tensor) else list(states)


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
        sources = set() if any(name in str(node.target) for name in _SIZES_ALONE) else set(node.all_input_nodes) - seen
        seen |= sources
        waiting += sources
    return False
