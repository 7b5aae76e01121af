"""Whether factors are faster than the layer that they replace, measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.capture.duplicate import duplicate
from secateur.decompose import Call, LayerSpec, Refusal
from secateur.decompose.spec import read_spec
from secateur.measure import compare_latency
from secateur.plan import Factorize
from secateur.rewrite.factorize import with_skeletons
from secateur.score.ranks import of_first

REPEATS, SECONDS = 30, 2.0


def slower(layer: nn.Module, edit: Factorize, calls: Sequence[Call]) -> Refusal | None:
    """Time a layer and its factors in turns on inputs of the sizes of its calls, and refuse factors that are not faster."""
    dense, factors = of_first(layer_latencies(layer, edit, calls))
    if factors < dense:
        return None
    return Refusal(f"rank {' x '.join(map(str, edit.rank))} makes it slower: {dense:.3g} -> {factors:.3g} ms measured")


def layer_latencies(layer: nn.Module, edit: Factorize, calls: Sequence[Call]) -> tuple[float, float]:
    """Median milliseconds of a layer and of factors of the planned shapes, over all its calls."""
    holder = nn.ModuleDict({"layer": duplicate(layer)})
    with_skeletons(holder, [replace(edit, layer="layer")])
    models = {"dense": layer, "factors": holder["layer"]}
    dense, factors = 0.0, 0.0
    for call in dict.fromkeys(calls):
        timed = compare_latency(models, (_example(layer, call),), warmup=5, repeats=REPEATS, budget_s=SECONDS)
        times = list(calls).count(call)
        dense += times * timed["dense"].median_ms
        factors += times * timed["factors"].median_ms
    return dense, factors


def _example(layer: nn.Module, call: Call) -> Tensor:
    spec = read_spec(layer, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    assert isinstance(layer.weight, Tensor)
    return torch.zeros(call.samples, spec.inputs, *call.size, dtype=layer.weight.dtype, device=layer.weight.device)
