"""Convolutions, plain and transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from secateur.capture.onnx.operators.padding import same_pads, split_pads, torch_pads
from secateur.capture.onnx.registry import Call, Node, Weights, layer, operator
from secateur.capture.onnx.values import Value

_PLAIN: Sequence[tuple[type[nn.Module], Callable[..., Tensor]]] = (
    (nn.Conv1d, F.conv1d),
    (nn.Conv2d, F.conv2d),
    (nn.Conv3d, F.conv3d),
)
_TRANSPOSED: Sequence[tuple[type[nn.Module], Callable[..., Tensor]]] = (
    (nn.ConvTranspose1d, F.conv_transpose1d),
    (nn.ConvTranspose2d, F.conv_transpose2d),
    (nn.ConvTranspose3d, F.conv_transpose3d),
)


def _settings(node: Node, rank: int) -> dict[str, Any]:
    """Options of torch's convolution; padding that differs between two sides is done before it."""
    ones = [1] * rank
    before, after = split_pads(node, rank)
    symmetric = before == after and node.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return {
        "stride": tuple(node.attribute("strides", ones)),
        "padding": tuple(before) if symmetric else (0,) * rank,
        "dilation": tuple(node.attribute("dilations", ones)),
        "groups": node.attribute("group", 1),
    }


def _padded(call: Call, x: Tensor, kernel: Sequence[int]) -> Tensor:
    node, rank = call.node, len(kernel)
    before, after = split_pads(node, rank)
    auto = node.attribute("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        settings = _settings(node, rank)
        before, after = same_pads(x.shape[2:], kernel, settings["stride"], settings["dilation"], upper=auto == "SAME_UPPER")
    elif before == after:
        return x
    return F.pad(x, torch_pads(before, after))


@layer("Conv", places=(1, 2))
def conv_layer(node: Node, weights: Weights) -> nn.Module | None:
    weight, bias = weights
    if weight is None or not 3 <= weight.dim() <= 5:
        return None
    rank, settings = weight.dim() - 2, _settings(node, weight.dim() - 2)
    channels = weight.shape[1] * settings["groups"], weight.shape[0]
    return _with_weights(_PLAIN[rank - 1][0], channels, weight, bias, settings)


def _with_weights(
    kind: type[nn.Module], channels: tuple[int, int], weight: Tensor, bias: Tensor | None, settings: dict[str, Any]
) -> nn.Module:
    made: Any = kind(*channels, tuple(weight.shape[2:]), bias=bias is not None, device="meta", **settings)
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    assert isinstance(made, nn.Module)
    return made


@operator("Conv")
def conv(call: Call) -> Value:
    x = call.tensor(0)
    if call.layer is not None:
        stored: Any = call.layer
        found: Tensor = stored(_padded(call, x, stored.weight.shape[2:]))
        return found
    weight = call.tensor(1)
    rank = weight.dim() - 2
    return _PLAIN[rank - 1][1](_padded(call, x, weight.shape[2:]), weight, call.optional(2), **_settings(call.node, rank))


def _transposed_settings(node: Node, rank: int) -> dict[str, Any]:
    if node.attribute("auto_pad", "NOTSET").startswith("SAME") or node.attribute("output_shape"):
        raise node.refuse("padding that follows from the output's shape cannot be read")
    return _settings(node, rank) | {"output_padding": tuple(node.attribute("output_padding", [0] * rank))}


@layer("ConvTranspose", places=(1, 2))
def conv_transpose_layer(node: Node, weights: Weights) -> nn.Module | None:
    weight, bias = weights
    if weight is None or not 3 <= weight.dim() <= 5:
        return None
    rank, settings = weight.dim() - 2, _transposed_settings(node, weight.dim() - 2)
    channels = weight.shape[0], weight.shape[1] * settings["groups"]
    return _with_weights(_TRANSPOSED[rank - 1][0], channels, weight, bias, settings)


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Value:
    x = call.tensor(0)
    if call.layer is not None:
        found: Tensor = call.layer(x)
        return _cropped(call, found)
    weight = call.tensor(1)
    rank = weight.dim() - 2
    found = _TRANSPOSED[rank - 1][1](x, weight, call.optional(2), **_transposed_settings(call.node, rank))
    return _cropped(call, found)


def _cropped(call: Call, x: Tensor) -> Tensor:
    """What is left where two sides are padded differently: torch's layer then pads none."""
    before, after = split_pads(call.node, x.dim() - 2)
    if before == after:
        return x
    return F.pad(x, torch_pads([-p for p in before], [-p for p in after]))
