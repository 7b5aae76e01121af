"""The times of layers and of factors in their place, by the times of single operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from secateur.capture import Capture
from secateur.decompose import Call, LayerSpec
from secateur.decompose.spec import weight_shape
from secateur.measure.layer_times import LayerTimes
from secateur.measure.macs import is_view
from secateur.measure.operation import Operation, Shaped


def own_nodes(capture: Capture, names: Sequence[str]) -> list[fx.Node]:
    """The nodes of a captured model that compute with the weight of a layer, which is known by these names."""
    weights = {f"{name}.weight" for name in names}
    return [reader for node in capture.graph.find_nodes(op="get_attr") if str(node.target) in weights for reader in _readers(node)]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who computes with what a node gives, past views of it."""
    for user in node.users:
        if isinstance(user.target, torch._ops.OpOverload) and is_view(user.target):
            yield from _readers(user)
        else:
            yield user


def factor_operations(specs: Iterable[LayerSpec], calls: Sequence[Call], dtype: torch.dtype) -> list[list[Operation]]:
    """The operators of layers that follow each other in the place of one, each with one for every call of that."""
    specs = list(specs)
    sizes = [call.size for call in calls]
    out: list[list[Operation]] = []
    for spec in specs:
        out.append([_operation(spec, call.samples, size, dtype) for call, size in zip(calls, sizes, strict=True)])
        sizes = [spec.output_size(size) for size in sizes]
    return out


def sums(times: LayerTimes, groups: Sequence[Sequence[Operation]]) -> list[float | None]:
    """The time of each group of operators, all measured in one go; ``None`` where one of them does not run by itself."""
    found = iter(times([each for group in groups for each in group]))
    parts = [[next(found) for _ in group] for group in groups]
    return [None if not part or None in part else sum(time for time in part if time is not None) for part in parts]


def _operation(spec: LayerSpec, samples: int, size: Sequence[int], dtype: torch.dtype) -> Operation:
    """The operator that one call of a plain layer runs."""
    weight = Shaped(weight_shape(replace(spec, inputs_first=False)), dtype, stored=True)
    bias = Shaped((spec.outputs,), dtype, stored=True) if spec.bias else None
    if not spec.extent:
        return _called(torch.ops.aten.linear.default, Shaped((samples, spec.inputs), dtype), weight, bias)
    padding, around = _padding(spec)
    given = Shaped((samples, spec.inputs, *(n + extra for n, extra in zip(size, around, strict=True))), dtype)
    stride, dilation = list(spec.stride), list(spec.dilation)
    packet = getattr(torch.ops.aten, f"conv{'_transpose' if spec.transposed else ''}{len(spec.extent)}d")
    if spec.transposed:
        return _called(packet.input, given, weight, bias, stride, padding, list(spec.output_padding), spec.groups, dilation)
    return _called(packet.default, given, weight, bias, stride, padding, dilation, spec.groups)


def _padding(spec: LayerSpec) -> tuple[list[int], list[int]]:
    """What a convolution pads its input by, and by how much it is larger before, where another operator pads it."""
    if isinstance(spec.padding, str):
        own = [d * (k - 1) // 2 if spec.padding == "same" else 0 for k, d in zip(spec.extent, spec.dilation, strict=True)]
    else:
        own = list(spec.padding)
    none = [0] * len(own)
    return (own, none) if spec.padding_mode == "zeros" else (none, [2 * each for each in own])


def _called(target: Any, *args: Any) -> Operation:
    leaves, spec = pytree.tree_flatten((args, {}))
    return Operation(target, tuple(leaves), spec)
