"""Scale predicted losses by what the model's outputs lose at one point of each curve.

A prediction takes the errors at different positions, and inputs and slopes, for independent. What that misses differs from layer to layer,
and between channels that go and ranks that fall, so without this neither compare. The samples are those that a change is fitted to: a
layer with more inputs than there were samples can seem to lose nothing. Then the assumption is judged by the samples alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from secateur.decompose import Change, Decomposable, DecomposableLayers, LayerSpec, Loss, Metric, decompose, gather_losses
from secateur.decompose.linalg import ridge_solve
from secateur.decompose.spec import read_spec, to_kernel
from secateur.errors import ModelError
from secateur.study.curves import Curve, Seen
from secateur.study.removals import Removal

T = TypeVar("T")
_RIDGE = 1e-4
# Of what was predicted: a change that moves the samples less is fitted to them if they were few for its size, or moves them by rounding.
_FITTED, _ROUNDING = 0.5, 1e-6
_FEW = 10


def coherent_curves(model: nn.Module, rows: Mapping[str, Decomposable], curves: Mapping[str, Curve], seen: Seen) -> dict[str, Curve]:
    """Curves of ranks, by layer, scaled where slopes are known."""
    points = {name: _at_half(curve) for name, curve in curves.items() if name in seen.slopes and name in seen.moments}
    changes = {name: {name: _factorized(model, rows[name], curves[name], place, seen)} for name, place in points.items()}
    predicted = {name: float(curves[name].errors.errors[place]) for name, place in points.items()}
    scales = _scales(model, changes, predicted, curves, seen)
    return {
        name: replace(curve, errors=replace(curve.errors, errors=curve.errors.errors * scale, whole=curve.errors.whole * scale))
        for (name, curve), scale in zip(curves.items(), scales.values(), strict=True)
    }


def coherent_removals(model: nn.Module, removals: Mapping[str, Removal], layers: DecomposableLayers, seen: Seen) -> dict[str, Removal]:
    """Losses of channels, by group, scaled where slopes are known."""
    steps = {name: int(np.abs(removal.counts - removal.group.size / 2).argmin()) for name, removal in removals.items()}
    known = {name for name, removal in removals.items() if seen.slopes.keys() >= _readers(removal, layers).keys() and steps[name]}
    changes = {
        name: {
            reader: _without(model.get_submodule(reader), removals[name].gone_at(steps[name]), places, seen, reader)
            for reader, places in _readers(removals[name], layers).items()
        }
        for name in removals
        if name in known
    }
    predicted = {name: float(removals[name].losses[steps[name]]) for name in changes}
    scales = _scales(model, changes, predicted, removals, seen)
    return {name: replace(removal, losses=removal.losses * scales[name]) for name, removal in removals.items()}


def _scales(
    model: nn.Module,
    changes: Mapping[str, Mapping[str, Change]],
    predicted: Mapping[str, float],
    everything: Mapping[str, T],
    seen: Seen,
) -> dict[str, float]:
    """What the outputs lose by each change as a multiple of what was predicted; the usual multiple for what cannot be told."""
    try:
        found = gather_losses(model, changes, seen.batches(), trust_forward=True) if changes and seen.batches else {}
    except ModelError:
        found = {}
    scales = {
        name: loss.whole / (loss.independent if _is_fitted(loss, predicted[name], changes[name], seen) else predicted[name])
        for name, loss in found.items()
        if loss.independent > _ROUNDING * predicted[name] > 0
    }
    usual = median(scales.values()) if scales else 1.0
    return {name: scales.get(name, usual) for name in everything}


def _is_fitted(loss: Loss, predicted: float, layers: Iterable[str], seen: Seen) -> bool:
    """Whether a change loses less on the samples than it would on others, since some layer saw few inputs for their number."""
    few = any(seen.moments[name].count < _FEW * seen.moments[name].outer.shape[-1] for name in layers)
    return few and loss.independent < _FITTED * predicted


def _at_half(curve: Curve) -> int:
    """The best point at no more than half of the cost, or else the cheapest."""
    costs, errors = curve.errors.costs[:-1], curve.errors.errors[:-1]
    half = costs <= curve.errors.dense_cost / 2
    return int(np.where(half, errors, np.inf).argmin() if half.any() else costs.argmin())


def _factorized(model: nn.Module, row: Decomposable, curve: Curve, place: int, seen: Seen) -> Change:
    layer, point = model.get_submodule(row.name), curve.points[place]
    assert point is not None
    method, rank = point
    found = decompose(
        layer,
        method,
        rank,
        moments=seen.moments[row.name],
        slopes=seen.slopes[row.name],
        accept_dearer=True,
        trust_forward=row.trusted,
    )
    spec, kernel, metric = _known(layer, row.name, seen)
    return Change.of(to_kernel(found.weight, spec) - kernel, metric)


def _readers(removal: Removal, layers: DecomposableLayers) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The layers that read a group's channels, each with the places of its inputs that hold them and which channels these are."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for member in removal.group.members:
        if member.role == "reads":
            name = layers[member.tensor.removesuffix(".weight")].name
            found.setdefault(name, []).append((torch.as_tensor(member.positions), torch.as_tensor(member.channels)))
    return found


def _without(layer: nn.Module, dead: Tensor, places: list[tuple[Tensor, Tensor]], seen: Seen, name: str) -> Change:
    """The change of a layer that loses channels and is refitted."""
    spec, kernel, metric = _known(layer, name, seen)
    inputs = torch.ones(spec.inputs, dtype=torch.bool)
    for positions, channels in places:
        inputs[positions[torch.isin(channels, dead)]] = False
    patch = metric.patch is not None
    covariance = metric.patch[0] if metric.patch is not None else metric.channel[0]
    rows = kernel[0].flatten(1) if patch else kernel[0].flatten(2).transpose(1, 2).flatten(0, 1)
    kept = inputs.repeat_interleave(spec.taps) if patch else inputs
    fitted = torch.zeros_like(rows)
    fitted[:, kept] = ridge_solve(rows @ covariance[:, kept], covariance[kept][:, kept], ridge=_RIDGE)
    change = fitted - rows
    whole = change if patch else torch.unflatten(change, 0, (spec.outputs, spec.taps)).transpose(1, 2)
    return Change.of(whole.reshape(kernel.shape), metric)


def _known(layer: nn.Module, name: str, seen: Seen) -> tuple[LayerSpec, Tensor, Metric]:
    spec = read_spec(layer, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    assert isinstance(layer.weight, Tensor)
    kernel = to_kernel(layer.weight.detach().double(), spec)
    return spec, kernel, Metric.of(seen.moments[name], spec, centred=True).to(kernel)
