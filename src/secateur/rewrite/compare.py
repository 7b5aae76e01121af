"""How far two sets of outputs are apart, relative to their scale and to how much they depend on the inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHANGE = 1e-6
"""What counts as a change of the outputs between two inputs, relative to their scale."""


@dataclass(frozen=True)
class Trial:
    """One comparison of the smaller model with the masked dense model."""

    inputs: str
    error: float
    """Largest absolute difference, relative to the outputs' scale."""
    sensitivity: float
    """Largest absolute difference, relative to how much the outputs change between two inputs."""


def compare(reference: Sequence[Any], found: Sequence[Any], other: Sequence[Any], name: str) -> Trial:
    """Errors over all outputs: relative to their scale, and to their change between two inputs."""
    error = sensitivity = 0.0
    for want, have, elsewhere in zip(reference, found, other, strict=True):
        if not isinstance(want, Tensor):
            continue
        if want.shape != have.shape:
            return Trial(name, math.inf, math.inf)
        difference = largest_difference(want, have)
        if difference == 0:
            continue
        scale = largest(want)
        change = largest(_finite_part(want) - _finite_part(elsewhere)) if want.shape == elsewhere.shape else scale
        error = _maximum(error, difference / scale if scale else math.inf)
        sensitivity = _maximum(sensitivity, difference / change if change > CHANGE * scale else difference / scale if scale else math.inf)
    return Trial(name, error, sensitivity)


def depend_on_inputs(outputs: Sequence[Sequence[Any]]) -> bool:
    """Whether outputs for several inputs differ by more than rounding; those for one, and empty ones, are taken to."""
    if len(outputs) < 2 or not any(isinstance(want, Tensor) and want.numel() for want in outputs[0]):
        return True
    return any(
        want.shape != other.shape or largest(_finite_part(want) - _finite_part(other)) > CHANGE * largest(want)
        for want, other in zip(*outputs[:2], strict=False)
        if isinstance(want, Tensor) and isinstance(other, Tensor)
    )


def largest_difference(want: Tensor, have: Tensor) -> float:
    """The largest absolute difference; equal infinities do not differ, and NaN stays NaN."""
    if want.is_complex() or have.is_complex():
        return largest(want.to(torch.complex128) - have.to(torch.complex128))
    a, b = want.double(), have.double()
    equal_infinities = torch.isinf(a) & (a == b)
    return largest(torch.where(equal_infinities, 0.0, a - b))


def _finite_part(x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x), x, 0) if x.is_floating_point() else x.to(torch.complex128) if x.is_complex() else x.double()


def largest(x: Tensor) -> float:
    """The largest absolute value that is not infinite; NaN stays NaN."""
    if not x.numel():
        return 0.0
    values = x.abs() if x.is_complex() else x.double().abs()
    finite = torch.where(torch.isinf(values), 0.0, values) if values.numel() else values
    return float(finite.max())


def _maximum(a: float, b: float) -> float:
    return b if math.isnan(b) or b > a else a
