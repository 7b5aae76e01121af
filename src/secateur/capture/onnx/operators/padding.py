"""Padding: as an operator, and as a setting of convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F

from secateur.capture.onnx.registry import Call, Node, operator
from secateur.capture.onnx.values import Value

_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def split_pads(node: Node, rank: int) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial dimension, as a node's attributes say."""
    pads = node.attribute("pads") if node.attribute("auto_pad", "NOTSET") == "NOTSET" else None
    pads = list(pads or [0] * (2 * rank))
    return pads[:rank], pads[rank:]


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], *, upper: bool
) -> tuple[list[int], list[int]]:
    """Padding with which an output has ``ceil(size / stride)`` places; an odd one goes to the end with ``upper``."""
    before, after = [], []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = total // 2, total - total // 2
        before.append(less if upper else more)
        after.append(more if upper else less)
    return before, after


def torch_pads(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """Padding as torch's pad takes it: pairs, the last dimension first."""
    return [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]


@operator("Pad")
def pad(call: Call) -> Value:
    """Amounts and value are attributes before opset 11."""
    x = call.tensor(0)
    if call.node.opset < 11:
        amounts, value = list(call.attribute("pads")), call.attribute("value", 0.0)
    else:
        amounts, value = call.integers(1), call.numbers(2)[0] if call.has(2) else 0.0
    axes = [axis % x.dim() for axis in call.integers(3)] if call.has(3) else list(range(x.dim()))
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(axes):
        before[axis], after[axis] = amounts[place], amounts[place + len(axes)]
    touched = [d for d in range(x.dim()) if not _is_zero(before[d]) or not _is_zero(after[d])]
    if not touched:
        return x
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        return F.pad(x, torch_pads(before[touched[0] :], after[touched[0] :]), value=value)
    first = min(touched[0], 2)
    lifted = x if first else x.unsqueeze(0)
    padded = F.pad(lifted, torch_pads(before[first:], after[first:]), mode=_MODES[mode])
    return padded if first else padded.squeeze(0)


def _is_zero(amount: Any) -> bool:
    return isinstance(amount, int) and amount == 0
