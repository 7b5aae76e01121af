"""Where a captured model computes with the weight of a layer, on inputs of what size, and who else reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from secateur.capture.capture import Capture, Fact
from secateur.decompose.spec import Cost, LayerSpec, Pairs, Refusal, cost, read_spec

_PRODUCTS = frozenset(
    ["aten.linear", "aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"]
)


@dataclass(frozen=True)
class Call:
    """One call of a layer in one run of the model: how many samples there were, and of what spatial size."""

    samples: int
    size: Pairs


@dataclass(frozen=True)
class Use:
    """The calls of a layer in the order of the run, or why its weight cannot be replaced by factors."""

    calls: tuple[Call, ...]
    reason: str | None = None


def workload(specs: Sequence[LayerSpec], calls: Sequence[Call]) -> Cost:
    """Count the parameters of layers that follow each other, and their multiply-adds over all calls; without calls at a nominal size."""
    if not calls:
        return cost(specs)
    each = [cost(specs, call.size) for call in calls]
    return Cost(each[0].params, sum(call.samples * one.macs for call, one in zip(calls, each, strict=True)))


def uses(capture: Capture, layers: Mapping[str, tuple[str, ...]], others: Mapping[str, tuple[Call, ...]] | None = None) -> dict[str, Use]:
    """Find the uses of layers, given as all names of each by its first, in the order in which the model runs them.

    The graph answers: whoever else reads a weight or shares it, under whatever name, would miss it. Layers that are of no class of torch's
    are given with the calls that a run showed: their own code may read their weights by any operator.
    """
    others = others or {}
    readers = {str(node.target): list(node.users) for node in capture.graph.find_nodes(op="get_attr")}
    found = {first: _use(capture, names, readers, others.get(first)) for first, names in layers.items()}
    order = {node: place for place, node in enumerate(capture.graph.nodes)}
    first_runs = {name: min((order[n] for n in _readers(capture, f"{name}.weight", readers)), default=math.inf) for name in found}
    return {name: found[name] for name in sorted(found, key=lambda name: first_runs[name])}


def _use(capture: Capture, names: tuple[str, ...], readers: Mapping[str, list[fx.Node]], seen: tuple[Call, ...] | None) -> Use:
    module = capture.model.get_submodule(names[0])
    if "weight" not in module._parameters and not parametrize.is_parametrized(module):
        return Use((), "its weight is computed from other tensors at each call: remove the weight's normalisation first")
    for role in ("weight", "bias"):
        every = next((all_names for all_names in capture.tied.values() if f"{names[0]}.{role}" in all_names), ())
        others = [name for name in every if name not in {f"{own}.{role}" for own in names}]
        if others:
            return Use((), f"its {role} is shared with {others[0]}, from which factors would part it")
        every_reader = _readers(capture, f"{names[0]}.{role}", readers)
        strangers = [node for node in every_reader if not (_is_own_call(node, role, names) if seen is None else _is_within(node, names))]
        if strangers:
            where = strangers[0].meta.get("module") or "the model itself"
            return Use((), f"its {role} is read by {where} ({strangers[0].target}), not by the layer alone")
    called = [node for node in _readers(capture, f"{names[0]}.weight", readers) if node.op == "call_function"]
    if not called:
        return Use((), _unread(capture, names))
    return Use(tuple(_calls(called, _padded_by_itself(module))) if seen is None else seen)


def _unread(capture: Capture, names: tuple[str, ...]) -> str:
    """Say why no operator reads the weight of a layer."""
    runs = any(node.op == "call_function" and node.meta.get("module", "") in names for node in capture.graph.nodes)
    return "it computes with other values than those of its weight" if runs else "the model does not run it on these inputs"


def _readers(capture: Capture, name: str, readers: Mapping[str, list[fx.Node]]) -> list[fx.Node]:
    first = next((first for first, names in capture.tied.items() if name in names), name)
    return readers.get(first, [])


def _is_own_call(node: fx.Node, role: str, names: tuple[str, ...]) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or str(target.overloadpacket) not in _PRODUCTS:
        return False
    place = [argument.name for argument in target._schema.arguments].index(role)
    operand: Any = node.args[place] if place < len(node.args) else node.kwargs.get(role)
    return isinstance(operand, fx.Node) and operand.op == "get_attr" and _is_within(node, names)


def _is_within(node: fx.Node, names: tuple[str, ...]) -> bool:
    return node.meta.get("module", "") in names


def _calls(nodes: Sequence[fx.Node], padded: Sequence[int]) -> Iterator[Call]:
    for node in nodes:
        source, weight = (argument.meta["fact"] for argument in node.all_input_nodes[:2])
        assert isinstance(source, Fact)
        axes = len(weight.shape) - 2
        size = source.shape[len(source.shape) - axes :]
        own = tuple(max(1, n - extra) for n, extra in zip(size, padded, strict=True)) if padded else size
        yield Call(math.prod(source.shape[: len(source.shape) - axes - 1]), own)


def _padded_by_itself(module: nn.Module) -> Pairs:
    """By how much a convolution enlarges its input before the operator sees it, which it does for every padding but that with zeros."""
    spec = read_spec(module, trust_forward=True)
    if isinstance(spec, Refusal) or spec.padding_mode == "zeros":
        return ()
    if isinstance(spec.padding, str):
        return tuple(d * (k - 1) if spec.padding == "same" else 0 for k, d in zip(spec.extent, spec.dilation, strict=True))
    return tuple(2 * p for p in spec.padding)
