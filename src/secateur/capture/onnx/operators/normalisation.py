"""Normalisations, with statistics stored or taken from the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.capture.onnx.registry import Call, Node, Weights, layer, operator
from secateur.capture.onnx.values import Value

_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@layer("BatchNormalization", places=(1, 2, 3, 4))
def batch_norm_layer(node: Node, weights: Weights) -> nn.Module | None:
    """A layer of batch norm in evaluation mode; ``rank`` is that of the input, which a loader adds to the attributes."""
    weight, bias, mean, variance = weights
    if node.attribute("training_mode", 0) or weight is None or bias is None or mean is None or variance is None:
        return None
    kind = _BATCH_NORMS[node.attribute("rank", 4)]
    made = kind(weight.numel(), eps=node.attribute("epsilon", 1e-5), momentum=1 - node.attribute("momentum", 0.9))
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    made.running_mean, made.running_var = mean, variance
    return made


@operator("BatchNormalization")
def batch_norm(call: Call) -> Value:
    """With stored statistics, or in training mode with those of the input: exporters write standardised weights so."""
    if call.layer is not None:
        found: Tensor = call.layer(call.tensor(0))
        return found
    x, weight, bias, mean, variance = (call.tensor(place) for place in range(5))
    if call.attribute("training_mode", 0):
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=call.attribute("epsilon", 1e-5))
    return F.batch_norm(x, mean, variance, weight, bias, eps=call.attribute("epsilon", 1e-5))


@layer("LayerNormalization", places=(1, 2))
def layer_norm_layer(node: Node, weights: Weights) -> nn.Module | None:
    weight, bias = weights
    axis = node.attribute("axis", -1)
    if weight is None or (axis < 0 and weight.dim() != -axis):
        return None
    made = nn.LayerNorm(weight.shape, eps=node.attribute("epsilon", 1e-5), bias=bias is not None)
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made


@operator("LayerNormalization")
def layer_norm(call: Call) -> Value:
    if len([name for name in call.node.outputs if name]) > 1:
        raise call.node.refuse("the mean and the deviation, as outputs of their own, cannot be read")
    x = call.tensor(0)
    if call.layer is not None:
        found: Tensor = call.layer(x)
        return found
    axis = call.attribute("axis", -1) % x.dim()
    whole = F.layer_norm(x, x.shape[axis:], eps=call.attribute("epsilon", 1e-5)) * call.tensor(1)
    return whole + call.tensor(2) if call.has(2) else whole


@operator("RMSNormalization")
def rms_norm(call: Call) -> Value:
    x = call.tensor(0)
    axis = call.attribute("axis", -1) % x.dim()
    return F.rms_norm(x, x.shape[axis:], eps=call.attribute("epsilon", 1e-5)) * call.tensor(1)


@operator("InstanceNormalization")
def instance_norm(call: Call) -> Value:
    return F.instance_norm(call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.attribute("epsilon", 1e-5))


@layer("GroupNormalization", places=(1, 2))
def group_norm_layer(node: Node, weights: Weights) -> nn.Module | None:
    """Weights are one a channel; opset 18 had one a group."""
    weight, bias = weights
    if weight is None or bias is None or node.opset < 21:
        return None
    made = nn.GroupNorm(node.attribute("num_groups"), weight.numel(), eps=node.attribute("epsilon", 1e-5))
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made


@operator("GroupNormalization")
def group_norm(call: Call) -> Value:
    x = call.tensor(0)
    if call.layer is not None:
        found: Tensor = call.layer(x)
        return found
    groups, weight, bias = call.attribute("num_groups"), call.tensor(1), call.tensor(2)
    if call.node.opset < 21:
        weight, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (weight, bias))
    return F.group_norm(x, groups, weight, bias, eps=call.attribute("epsilon", 1e-5))


@operator("LpNormalization")
def lp_norm(call: Call) -> Value:
    x, axis, p = call.tensor(0), call.attribute("axis", -1), call.attribute("p", 2)
    return torch.div(x, torch.linalg.vector_norm(x, p, dim=axis, keepdim=True))


@operator("LRN")
def local_response_norm(call: Call) -> Value:
    settings = {"alpha": call.attribute("alpha", 1e-4), "beta": call.attribute("beta", 0.75), "k": call.attribute("bias", 1.0)}
    return F.local_response_norm(call.tensor(0), call.attribute("size"), **settings)
