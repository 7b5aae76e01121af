"""Activations with settings of their own, and softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.capture.onnx.registry import Call, Node, Weights, layer, operator
from secateur.capture.onnx.values import Value


@operator("Relu")
def relu(call: Call) -> Value:
    return torch.relu(call.tensor(0))


@operator("LeakyRelu")
def leaky_relu(call: Call) -> Value:
    return F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@operator("Elu")
def elu(call: Call) -> Value:
    return F.elu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Celu")
def celu(call: Call) -> Value:
    return F.celu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Selu")
def selu(call: Call) -> Value:
    """With torch's constants, or others as given."""
    alpha, gamma = call.attribute("alpha", 1.67326319217681884765625), call.attribute("gamma", 1.05070102214813232421875)
    return torch.mul(F.elu(call.tensor(0), alpha), gamma)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call) -> Value:
    return F.threshold(call.tensor(0), call.attribute("alpha", 1.0), 0.0)


@operator("Softplus")
def softplus(call: Call) -> Value:
    return F.softplus(call.tensor(0))


@operator("Softsign")
def softsign(call: Call) -> Value:
    return F.softsign(call.tensor(0))


@operator("Mish")
def mish(call: Call) -> Value:
    return F.mish(call.tensor(0))


@operator("Swish")
def swish(call: Call) -> Value:
    x = call.tensor(0)
    return x * torch.sigmoid(call.attribute("alpha", 1.0) * x)


@operator("HardSwish")
def hard_swish(call: Call) -> Value:
    return F.hardswish(call.tensor(0))


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Value:
    """``clamp(alpha x + beta, 0, 1)``; torch's own has one sixth and one half."""
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return F.hardsigmoid(call.tensor(0))
    return torch.clamp(call.tensor(0) * alpha + beta, 0, 1)


@operator("Gelu")
def gelu(call: Call) -> Value:
    return F.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


@layer("PRelu", places=(1,))
def prelu_layer(node: Node, weights: Weights) -> nn.Module | None:
    (slope,) = weights
    if slope is None or (slope.numel() > 1 and (slope.dim() < 2 or slope.shape[0] != slope.numel())):
        return None
    made = nn.PReLU(slope.numel())
    made.weight = nn.Parameter(slope.reshape(-1))
    return made


@operator("PRelu")
def prelu(call: Call) -> Value:
    x = call.tensor(0)
    if call.layer is not None:
        found: Tensor = call.layer(x)
        return found
    return torch.where(x >= 0, x, call.tensor(1) * x)


@operator("Softmax", "LogSoftmax")
def softmax(call: Call) -> Value:
    """Along one axis; before opset 13 along it and all that follow as one."""
    x = call.tensor(0)
    function = torch.softmax if call.node.operator == "Softmax" else torch.log_softmax
    axis = call.attribute("axis", -1 if call.node.opset >= 13 else 1) % x.dim()
    if call.node.opset < 13 and axis != x.dim() - 1:
        return function(x.flatten(axis), -1).reshape(x.shape)
    return function(x, axis)
