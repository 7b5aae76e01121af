"""What a model's outputs lose by given changes of its layers, to second order and without further assumptions.

A layer's error E counts tr(E C E^T G) by the covariances of its inputs and of its slopes, where both are taken for independent of each
other and of their neighbours. They are not: behind a mean over positions errors at all of them add up. So curves that are found in this
way are scaled by what the outputs lose at one point of them: E[(sum_p g_p . E x_p)^2], with the sum over all positions of a sample.
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
from secateur.decompose.slopes import Back, runs_back
from secateur.decompose.spec import Refusal, build, read_spec
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


def gather_losses(
    model: nn.Module, changes: Mapping[str, Mapping[str, Change]], batches: Iterable[Any], *, trust_forward: bool = False, seed: int = 0
) -> dict[str, float]:
    """Run batches forward and back, and return what the outputs lose by each of some changes, as a part of their variance.

    Each change is one of several layers at once, by their names; what no derivative reaches, or is not told sample by sample, is left out.
    """
    by_layer: dict[str, list[tuple[str, nn.Module, Tensor]]] = defaultdict(list)
    for key, layers in changes.items():
        for name, change in layers.items():
            by_layer[name].append((key, *_added(model, name, change, trust_forward=trust_forward)))
    squares, count = torch.zeros(len(changes), dtype=torch.float64), 0
    for samples, calls in runs_back(model, list(by_layer), batches, seed=seed):
        moved = {key: torch.zeros(samples, dtype=torch.float64) for key in changes}
        for call in calls:
            for key, added, mean in by_layer[call.name]:
                moved[key] += _moved(call, added, mean, samples)
        squares += torch.stack(list(moved.values())).square().sum(1)
        count += samples
    means = (summed(squares) / max(total(count), 1)).tolist()
    return {key: mean for key, mean in zip(changes, means, strict=True) if 0 < mean < math.inf}


@torch.no_grad()
def _moved(call: Back, added: nn.Module, mean: Tensor, samples: int) -> Tensor:
    """By how much a change moves the outputs of each sample; not a number where the layer's first dimension is none of samples."""
    if call.gradient is None:
        return torch.zeros(samples, dtype=torch.float64)
    if not samples or len(call.gradient) % samples:
        return torch.full((samples,), math.nan, dtype=torch.float64)
    response: Tensor = added(call.given.to(mean.dtype)) - mean
    # Windows or tokens that were folded into the first dimension follow each other.
    return (call.gradient.to(mean.dtype) * response).double().cpu().reshape(samples, -1).sum(1)


def _added(model: nn.Module, name: str, change: Change, *, trust_forward: bool) -> tuple[nn.Module, Tensor]:
    """The layer that computes a change of another alone, and the mean of what it puts out in the shape of its outputs."""
    layer = model.get_submodule(name)
    spec, weight = read_spec(layer, trust_forward=trust_forward), layer.weight
    if isinstance(spec, Refusal):
        raise SelectionError(f"no losses for layer {name}: {spec.reason}")
    assert isinstance(weight, Tensor)
    like = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    added = build(replace(spec, bias=False), change.kernel.to(like), None, trainable=False)
    return added, change.mean.to(like).reshape(-1, *(1,) * len(spec.extent))
