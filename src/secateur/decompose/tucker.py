"""Three layers from a Tucker decomposition along the channels of a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.decompose.hooi import hooi
from secateur.decompose.linalg import leading_eigenvectors, leading_left
from secateur.decompose.metric import Metric, regress_outputs
from secateur.decompose.spec import LayerSpec

# Ranks that are tried along each mode when the ranks of all layers are chosen together.
_GRID = 32


@dataclass(frozen=True)
class Tucker:
    """Factorize a convolution into pointwise, spatial and pointwise layers of ranks (in, out).

        W ~ C x_0 U_out x_1 U_in:   reduce = U_in^T, core = C, expand = U_out

    Kim et al., ICLR 2016. HOSVD, then HOOI (each factor in turn, the best one given the other) until further steps promise less than
    `tolerance` of the energy that is still lost. With a metric the input channels are whitened; where it knows whole patches, core and
    output factor are then the best under them (reduced rank regression). A mode of full rank needs no layer of its own, unless `keep_full`.
    """

    tolerance: float = 5e-4
    iterations: int = 100
    keep_full: bool = False

    @property
    def name(self) -> str:
        return "tucker"

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Refuse kernels without a spatial extent."""
        return "its kernel is a matrix: use svd" if spec.taps == 1 else None

    def limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return (spec.group_inputs, spec.group_outputs)

    def layers(self, spec: LayerSpec, rank: tuple[int, ...]) -> Mapping[str, LayerSpec]:
        """Describe the layers; the core carries stride, padding and dilation."""
        narrow_in, narrow_out = self._narrowed(rank, self.limits(spec))
        inner, outer = spec.groups * rank[0], spec.groups * rank[1]
        layers = {"core": replace(spec, inputs=inner, outputs=outer, bias=spec.bias and not narrow_out)}
        if narrow_in:
            layers = {"reduce": spec.pointwise(spec.inputs, inner), **layers}
        if narrow_out:
            layers["expand"] = spec.pointwise(outer, spec.outputs, bias=spec.bias)
        return layers

    def unfoldings(self, kernel: Tensor) -> tuple[Tensor, ...]:
        return (kernel.transpose(1, 2).flatten(2), kernel.flatten(2))

    def from_mode_ranks(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        return ranks

    def squared_errors(self, kernel: Tensor, metric: Metric | None = None, *, round_to: int = 1) -> Mapping[tuple[int, ...], float]:
        """Return the error of truncated HOSVD, exactly, on a grid of rank pairs; HOOI can only lower it.

        One rotation by the full factors serves all pairs: the energy of a corner of the core is what its ranks capture.
        """
        target = kernel if metric is None else torch.einsum("goi...,gij->goj...", kernel, metric.root()[0])
        factor_in = leading_left(target.transpose(1, 2).flatten(2), target.shape[2])
        factor_out = leading_left(target.flatten(2), target.shape[1])
        core = torch.einsum("goi...,gir,gos->gsr...", target, factor_in, factor_out)
        energy = core.flatten(3).square().sum((0, 3))
        lost = (energy.sum() - energy.cumsum(0).cumsum(1)).clamp_min(0)
        grid_in, grid_out = _grid(target.shape[2], round_to), _grid(target.shape[1], round_to)
        return {(r_in, r_out): float(lost[r_out - 1, r_in - 1]) for r_in in grid_in for r_out in grid_out}

    def __call__(self, kernel: Tensor, rank: tuple[int, ...], metric: Metric | None = None) -> Mapping[str, Tensor]:
        """Fit the factors of a kernel `(groups, out, in, *extent)`."""
        root, inverse = (None, None) if metric is None else metric.unit_root()
        target = kernel if root is None else torch.einsum("goi...,gij->goj...", kernel, root)
        factor_in, factor_out, core = hooi(target, rank, tolerance=self.tolerance, iterations=self.iterations)
        reduce = factor_in.mT if inverse is None else factor_in.mT @ inverse
        if metric is not None and metric.patch is not None:
            core, factor_out = _refit(kernel, reduce, metric.patch, rank[1])
        return self._assemble(reduce, core, factor_out)

    def _narrowed(self, rank: tuple[int, ...], limits: tuple[int, ...]) -> tuple[bool, bool]:
        return (self.keep_full or rank[0] < limits[0], self.keep_full or rank[1] < limits[1])

    def _assemble(self, reduce: Tensor, core: Tensor, expand: Tensor) -> dict[str, Tensor]:
        rank, limits = (reduce.shape[1], expand.shape[2]), (reduce.shape[2], expand.shape[1])
        narrow_in, narrow_out = self._narrowed(rank, limits)
        ones = (1,) * (core.dim() - 3)
        if not narrow_in:
            core = torch.einsum("gor...,gri->goi...", core, reduce)
        if not narrow_out:
            core = torch.einsum("gsi...,gos->goi...", core, expand)
        factors = {"reduce": reduce.reshape(*reduce.shape, *ones)} if narrow_in else {}
        factors["core"] = core
        if narrow_out:
            factors["expand"] = expand.reshape(*expand.shape, *ones)
        return factors


def _grid(limit: int, round_to: int) -> list[int]:
    """Ranks up to the full one, in about equal steps that are multiples of `round_to`."""
    wanted = (round_to * round(limit * step / _GRID / round_to) for step in range(1, _GRID + 1))
    return sorted({rank for rank in wanted if 0 < rank < limit} | {limit})


def _refit(kernel: Tensor, reduce: Tensor, patch: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Fit core and output factor under the patch covariance, given the input factor: reduced rank regression."""
    groups, _, inputs, *extent = kernel.shape
    identity = torch.eye(patch.shape[-1] // inputs, dtype=kernel.dtype, device=kernel.device)
    patterns = torch.stack([torch.kron(one.contiguous(), identity) for one in reduce])
    weights, response = regress_outputs(kernel.flatten(2), patterns, patch)
    expand = leading_eigenvectors(weights @ response @ weights.mT, rank)
    core = (expand.mT @ weights).reshape(groups, rank, reduce.shape[1], *extent)
    return core, expand
