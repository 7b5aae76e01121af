"""Pointwise, depthwise and pointwise layers from a canonical polyadic decomposition of a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from secateur.decompose.als import (
    Factors,
    Fit,
    LeastSquares,
    Target,
    balance,
    improve,
    khatri_rao,
    race,
    random_start,
    subspace_start,
    tap_start,
)
from secateur.decompose.epc import error_preserving_correction
from secateur.decompose.hooi import hooi
from secateur.decompose.linalg import compose
from secateur.decompose.metric import Metric, regress_outputs
from secateur.decompose.spec import LayerSpec

# What a factor may grow by to explain patches better: below this the terms cancel each other again.
_PATCH_RIDGE = 1e-6
# Prices on the energy of the terms of a kernel of norm one: of the race, then of each part of the fit before the last, which has none.
_FIRST_PRICE = 1e-2
_PRICES = (1e-3, 1e-4, 1e-5)
_LAST_SWEEPS = 20
_QUICK_SWEEPS = 30
# As parts of the smaller number of channels: where fits are made, and into how many parts the ranks between them divide it.
_QUICK_PARTS = (0.06, 0.12, 0.25, 0.5, 0.75, 1.0, 1.5)
_BETWEEN = 32


@dataclass(frozen=True)
class CP:
    """Factorize a convolution into a sum of r rank-one kernels.

        W[o, i, y, x] ~ sum_r expand[o, r] vertical[y, r] horizontal[x, r] reduce[i, r]

    Lebedev et al., ICLR 2015. `separable` gives one depthwise layer for each spatial axis, four layers in two dimensions; without it one
    depthwise layer spans all axes, which is more accurate at the same rank. The fit races several starts of alternating least squares in
    the subspace that Tucker finds and improves the winner on the whole kernel, at a price on the energy of its terms that falls step by
    step to nothing: so it finds lower errors, and terms that hardly cancel each other. Last it shrinks them further (`epc`) at an error of
    at most `slack` times that of the fit. With a metric the input channels are whitened throughout.
    """

    separable: bool = True
    starts: int = 4
    sweeps: int = 300
    tolerance: float = 1e-6
    epc: bool = True
    slack: float = 1.001
    seed: int = 0

    @property
    def name(self) -> str:
        return "cp"

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Refuse kernels without a spatial extent."""
        return "its kernel is a matrix: use svd" if spec.taps == 1 else None

    def limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return (spec.taps * min(spec.group_inputs, spec.group_outputs),)

    def layers(self, spec: LayerSpec, rank: tuple[int, ...]) -> Mapping[str, LayerSpec]:
        """Describe the layers; the depthwise ones carry stride, padding and dilation of their axes."""
        inner = spec.groups * rank[0]
        layers = {"reduce": spec.pointwise(spec.inputs, inner)}
        for number, axes in enumerate(self._axes(spec.extent)):
            layers[f"depthwise{number}"] = replace(spec.along(axes, inner, inner), groups=inner)
        layers["expand"] = spec.pointwise(inner, spec.outputs, bias=spec.bias)
        return layers

    def unfoldings(self, kernel: Tensor) -> tuple[Tensor, ...]:
        return (kernel.transpose(1, 2).flatten(2), kernel.flatten(2))

    def from_mode_ranks(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Take the larger one: the canonical rank is at least the rank of each unfolding."""
        return (max(ranks),)

    def squared_errors(self, kernel: Tensor, metric: Metric | None = None, *, round_to: int = 1) -> Mapping[tuple[int, ...], float]:
        """Fit at a few ranks, quickly, since canonical errors cannot be read off a spectrum; between them errors fall by equal parts."""
        quick = replace(self, starts=2, sweeps=_QUICK_SWEEPS, epc=False)
        target = kernel if metric is None else torch.einsum("goi...,gij->goj...", kernel, metric.root()[0])
        full, width = _exact_rank(target), min(target.shape[1:3])
        fitted = sorted({min(full, _stepped(width * part, round_to)) for part in _QUICK_PARTS} | {full})
        errors = [float((target - compose(list(quick(target, (rank,)).values()))).square().sum()) for rank in fitted]
        between = {_stepped(width * part / _BETWEEN, round_to) for part in range(1, round(_BETWEEN * max(_QUICK_PARTS)) + 1)}
        ranks = sorted({rank for rank in between if fitted[0] <= rank <= fitted[-1]} | set(fitted))
        logs = np.interp(ranks, fitted, np.log(np.maximum(errors, np.finfo(np.float64).tiny)))
        return {(rank,): float(error) for rank, error in zip(ranks, np.exp(logs), strict=True)}

    def __call__(self, kernel: Tensor, rank: tuple[int, ...], metric: Metric | None = None) -> Mapping[str, Tensor]:
        """Fit the factors of a kernel `(groups, out, in, *extent)`."""
        extent = tuple(kernel.shape[3:])
        modes = [_size(extent, axes) for axes in self._axes(extent)]
        root, inverse = (None, None) if metric is None else metric.unit_root()
        whitened = kernel if root is None else torch.einsum("goi...,gij->goj...", kernel, root)
        out, inner, *spatial = self._fit(whitened.reshape(*kernel.shape[:3], *modes), rank[0])
        inner = inner if inverse is None else inverse.mT @ inner
        if metric is not None and metric.patch is not None and rank[0] < _exact_rank(kernel):
            patterns = (khatri_rao([inner, *spatial])).mT
            out = regress_outputs(kernel.flatten(2), patterns, metric.patch, ridge=_PATCH_RIDGE)[0]
        return self._assemble(balance((out, inner, *spatial)), extent)

    def _fit(self, kernel: Tensor, rank: int) -> Factors:
        scale = kernel.norm()
        scale = scale.where(scale > 0, 1)
        target = Target.of(kernel / scale)
        if rank >= _exact_rank(kernel):
            return tap_start(kernel, rank)
        factors, sweeps = self._race(target.kernel, rank), max(1, self.sweeps // len(_PRICES))
        for price in _PRICES:
            factors = improve(target, factors, sweeps=sweeps, tolerance=10 * self.tolerance, goal=LeastSquares(price)).factors
        fit = improve(target, factors, sweeps=min(sweeps, _LAST_SWEEPS), tolerance=self.tolerance)
        if self.epc:
            fit = error_preserving_correction(target, fit, slack=self.slack)
        out, *others = (factor[0] for factor in fit.factors)
        return (out * scale, *others)

    def _race(self, kernel: Tensor, rank: int) -> Factors:
        """Find good factors in the subspace of `rank` input and output channels that holds most of the kernel."""
        narrow = (min(rank, kernel.shape[2]), min(rank, kernel.shape[1]))
        factor_in, factor_out, core = hooi(kernel, narrow, tolerance=1e-2, iterations=5)
        best = self._race_core(core, rank)
        out, inner, *spatial = best.factors
        return (factor_out @ out, factor_in @ inner, *spatial)

    def _race_core(self, core: Tensor, rank: int) -> Fit:
        generator = torch.Generator().manual_seed(self.seed)
        starts = [subspace_start(core, rank, generator), tap_start(core, rank)][: self.starts]
        starts += [random_start(core, rank, generator) for _ in range(self.starts - 2)]
        stacked = tuple(torch.stack(factor) for factor in zip(*starts, strict=True))
        goal = LeastSquares(_FIRST_PRICE)
        return race(Target.of(core), stacked, sweeps=max(1, self.sweeps // 3), tolerance=100 * self.tolerance, goal=goal)

    def _axes(self, extent: tuple[int, ...]) -> list[list[int]]:
        """Choose the axes of each depthwise layer; axes of extent one ride with the first."""
        extended = [axis for axis, size in enumerate(extent) if size > 1]
        if not self.separable:
            return [list(range(len(extent)))]
        flat = [axis for axis in range(len(extent)) if axis not in extended]
        return [[*flat, extended[0]], *([axis] for axis in extended[1:])]

    def _assemble(self, factors: Factors, extent: tuple[int, ...]) -> dict[str, Tensor]:
        out, inner, *spatial = factors
        ones = (1,) * len(extent)
        kernels = {"reduce": inner.mT.reshape(*inner.mT.shape, *ones)}
        for number, (factor, axes) in enumerate(zip(spatial, self._axes(extent), strict=True)):
            shape = [size if axis in axes else 1 for axis, size in enumerate(extent)]
            kernels[f"depthwise{number}"] = factor.mT.reshape(-1, 1, 1, *shape)
        kernels["expand"] = out.reshape(*out.shape, *ones)
        return kernels


def _exact_rank(kernel: Tensor) -> int:
    """Return the rank at which one matrix a tap suffices."""
    return kernel[0, 0, 0].numel() * min(kernel.shape[1:3])


def _stepped(rank: float, step: int) -> int:
    return step * max(1, round(rank / step))


def _size(extent: tuple[int, ...], axes: list[int]) -> int:
    size = 1
    for axis in axes:
        size *= extent[axis]
    return size
