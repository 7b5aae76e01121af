"""What a model's outputs lose by given changes of its layers, to second order and without further assumptions.

A layer's error E counts tr(E C E^T G) by the covariances of its inputs and of its slopes, where both are taken for independent of each
other and of their neighbours. They are not: behind a mean over positions errors at all of them add up. So curves that are found in this
way are scaled at one point of them by what the outputs lose, E[(sum_p g_p . E x_p)^2] with the sum over all positions of a sample, over
what the same samples tell where all is taken for independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.decompose.metric import Metric
from secateur.decompose.slopes import Back, outer_products, runs_back
from secateur.decompose.spec import LayerSpec, Refusal, build, read_spec
from secateur.errors import SelectionError
from secateur.score.ranks import summed, total


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to the kernel of a layer, `(groups, out, in, *extent)`, and the mean `(out,)` of what that puts out.

    The bias takes up the mean, so it is no loss.
    """

    kernel: Tensor
    mean: Tensor

    @classmethod
    def of(cls, kernel: Tensor, metric: Metric) -> Change:
        """The change by a kernel where the bias follows."""
        return cls(kernel, metric.mean_output(kernel))


@dataclass(frozen=True)
class Loss:
    """What the outputs lose by a change, as a part of their variance."""

    whole: float
    """With all that inputs, slopes and positions have to do with each other."""
    independent: float
    """On the same samples, were they independent."""


@dataclass(frozen=True, eq=False)
class _Added:
    """The part that one layer has in a change: the layer that computes it alone, and the mean of what that puts out."""

    key: str
    spec: LayerSpec
    layer: nn.Module
    mean: Tensor

    @torch.no_grad()
    def __call__(self, call: Back) -> Tensor:
        response: Tensor = self.layer(call.given.to(self.mean.dtype)) - self.mean
        return response


@dataclass(eq=False)
class _Independent:
    """Sums of outer products of what one layer puts out more by a change, and of its slopes."""

    responses: Tensor
    slopes: Tensor
    positions: int = 0

    @classmethod
    def of(cls, spec: LayerSpec) -> _Independent:
        shape = spec.groups, spec.group_outputs, spec.group_outputs
        return cls(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def add(self, spec: LayerSpec, response: Tensor, gradient: Tensor) -> None:
        self.responses += outer_products(spec, response)
        self.slopes += outer_products(spec, gradient)
        self.positions += response.numel() // spec.outputs

    def loss(self, samples: int) -> float:
        """The mean of one times the mean of the other, which sums over positions."""
        whole = (summed(self.responses) * summed(self.slopes)).sum()
        return float(whole) / max(total(self.positions), 1) / max(samples, 1)


def gather_losses(
    model: nn.Module, changes: Mapping[str, Mapping[str, Change]], batches: Iterable[Any], *, trust_forward: bool = False, seed: int = 0
) -> dict[str, Loss]:
    """Run batches forward and back, and return what the outputs lose by each of some changes.

    Each change is one of several layers at once, by their names; what no derivative reaches, or is not told sample by sample, is left out.
    """
    by_layer: dict[str, list[_Added]] = defaultdict(list)
    for key, layers in changes.items():
        for name, change in layers.items():
            by_layer[name].append(_added(model, name, key, change, trust_forward=trust_forward))
    apart = {(added.key, name): _Independent.of(added.spec) for name, each in by_layer.items() for added in each}
    squares, count = torch.zeros(len(changes), dtype=torch.float64), 0
    for samples, calls in runs_back(model, list(by_layer), batches, seed=seed):
        moved = {key: torch.zeros(samples, dtype=torch.float64) for key in changes}
        for call in calls:
            if call.gradient is None:
                continue
            for added in by_layer[call.name]:
                response = added(call)
                moved[added.key] += _moved(call.gradient, response, samples)
                apart[added.key, call.name].add(added.spec, response, call.gradient)
        squares += torch.stack(list(moved.values())).square().sum(1)
        count += samples
    count = total(count)
    means = (summed(squares) / max(count, 1)).tolist()
    independent = {key: sum(apart[key, name].loss(count) for name in layers) for key, layers in changes.items()}
    return {key: Loss(mean, independent[key]) for key, mean in zip(changes, means, strict=True) if 0 < mean < math.inf}


def _moved(gradient: Tensor, response: Tensor, samples: int) -> Tensor:
    """By how much a change moves the outputs of each sample; not a number where the layer's first dimension is none of samples."""
    if not samples or len(gradient) % samples:
        return torch.full((samples,), math.nan, dtype=torch.float64)
    # Windows or tokens that were folded into the first dimension follow each other.
    return (gradient.to(response.dtype) * response).double().cpu().reshape(samples, -1).sum(1)


def _added(model: nn.Module, name: str, key: str, change: Change, *, trust_forward: bool) -> _Added:
    """The layer that computes a change of another alone, and the mean of what it puts out in the shape of its outputs."""
    layer = model.get_submodule(name)
    spec, weight = read_spec(layer, trust_forward=trust_forward), layer.weight
    if isinstance(spec, Refusal):
        raise SelectionError(f"no losses for layer {name}: {spec.reason}")
    assert isinstance(weight, Tensor)
    like = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    alone = build(replace(spec, bias=False), change.kernel.to(like), None, trainable=False)
    return _Added(key, spec, alone, change.mean.to(like).reshape(-1, *(1,) * len(spec.extent)))
