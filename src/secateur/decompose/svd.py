"""Two layers from the singular value decomposition of a kernel seen as a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.decompose.linalg import leading_left, squared_singular_values
from secateur.decompose.metric import Metric
from secateur.decompose.spec import LayerSpec


@dataclass(frozen=True)
class SVD:
    """Factorize a linear layer or a 1x1 convolution into two of rank r.

        W ~ U_r (S_r V_r^T):   reduce is in -> r, expand is r -> out

    The squared error is the sum of the squared singular values left out. With a metric C it is W C^(1/2) that is decomposed, and the same
    holds for the error of the outputs; since W' = U_r U_r^T W there, no inverse of C is needed. `balance` gives both layers the same norm
    for each component, which conditions fine-tuning better and computes the same; without it the scale sits in the first layer.
    """

    balance: bool = True

    @property
    def name(self) -> str:
        return "svd"

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Refuse kernels that are more than one matrix."""
        return None if spec.taps == 1 else f"its kernel spans {spec.taps} taps: use tucker, cp or spatial-svd"

    def limits(self, spec: LayerSpec) -> tuple[int, ...]:
        return (min(spec.group_inputs, spec.group_outputs),)

    def layers(self, spec: LayerSpec, rank: tuple[int, ...]) -> Mapping[str, LayerSpec]:
        """Describe both layers; the one at the lower resolution carries stride and padding."""
        inner = spec.groups * rank[0]
        if spec.transposed:
            return {"reduce": spec.pointwise(spec.inputs, inner), "expand": replace(spec, inputs=inner)}
        reduce = replace(spec, outputs=inner, bias=False, inputs_first=False)
        return {"reduce": reduce, "expand": spec.pointwise(inner, spec.outputs, bias=spec.bias)}

    def unfoldings(self, kernel: Tensor) -> tuple[Tensor, ...]:
        return (kernel.flatten(2),)

    def from_mode_ranks(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        return ranks

    def squared_errors(self, kernel: Tensor, metric: Metric | None = None, *, round_to: int = 1) -> Mapping[tuple[int, ...], float]:
        matrix = kernel.flatten(2)
        return tails(matrix if metric is None else matrix @ metric.root()[0], round_to=round_to)

    def __call__(self, kernel: Tensor, rank: tuple[int, ...], metric: Metric | None = None) -> Mapping[str, Tensor]:
        """Split a kernel `(groups, out, in, 1...)` into `reduce` and `expand`."""
        ones = (1,) * (kernel.dim() - 3)
        matrix = kernel.flatten(2)
        root = None if metric is None else metric.root()[0]
        reduce, expand = split(matrix, rank[0], root=root, balance=self.balance)
        return {"reduce": reduce.reshape(*reduce.shape, *ones), "expand": expand.reshape(*expand.shape, *ones)}


@dataclass(frozen=True)
class SpatialSVD:
    """Factorize a convolution into one along its first spatial axis and one along the others.

        W[o, i, y, x] ~ sum_r expand[o, r, x] reduce[r, i, y]

    Jaderberg et al., BMVC 2014; Zhang et al., TPAMI 2016.
    """

    balance: bool = True

    @property
    def name(self) -> str:
        return "spatial-svd"

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Refuse kernels without two spatial axes to separate."""
        extended = sum(k > 1 for k in spec.extent)
        return None if extended >= 2 else "its kernel extends along fewer than two axes: there is nothing to separate"

    def limits(self, spec: LayerSpec) -> tuple[int, ...]:
        first, *rest = spec.extent
        return (min(spec.group_inputs * first, spec.group_outputs * math.prod(rest)),)

    def layers(self, spec: LayerSpec, rank: tuple[int, ...]) -> Mapping[str, LayerSpec]:
        """Describe both layers, each with the stride and padding of its own axes."""
        inner, axes = spec.groups * rank[0], range(len(spec.extent))
        reduce, expand = spec.along([0], spec.inputs, inner), spec.along(axes[1:], inner, spec.outputs)
        return {"reduce": reduce, "expand": replace(expand, bias=spec.bias)}

    def unfoldings(self, kernel: Tensor) -> tuple[Tensor, ...]:
        groups, outputs, inputs, first, *rest = kernel.shape
        tensor = kernel.reshape(groups, outputs, inputs, first, -1)
        return (tensor.permute(0, 1, 4, 2, 3).reshape(groups, outputs * math.prod(rest), inputs * first),)

    def from_mode_ranks(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        return ranks

    def squared_errors(self, kernel: Tensor, metric: Metric | None = None, *, round_to: int = 1) -> Mapping[tuple[int, ...], float]:
        (matrix,) = self.unfoldings(kernel)
        return tails(matrix if metric is None else matrix @ _root_of_taps(metric, kernel.shape[3]), round_to=round_to)

    def __call__(self, kernel: Tensor, rank: tuple[int, ...], metric: Metric | None = None) -> Mapping[str, Tensor]:
        """Split a kernel `(groups, out, in, *extent)` into `reduce` and `expand`."""
        groups, outputs, inputs, first, *rest = kernel.shape
        (matrix,) = self.unfoldings(kernel)
        root = None if metric is None else _root_of_taps(metric, first)
        reduce, expand = split(matrix, rank[0], root=root, balance=self.balance)
        expand = expand.reshape(groups, outputs, -1, rank[0]).transpose(2, 3)
        return {
            "reduce": reduce.reshape(groups, rank[0], inputs, first, *(1,) * len(rest)),
            "expand": expand.reshape(groups, outputs, rank[0], 1, *rest),
        }


def _root_of_taps(metric: Metric, taps: int) -> Tensor:
    """Repeat the root of the channel covariance for each tap of a column."""
    identity = torch.eye(taps, dtype=metric.channel.dtype, device=metric.channel.device)
    return torch.stack([torch.kron(root, identity) for root in metric.root()[0].contiguous()])


def tails(matrix: Tensor, *, round_to: int = 1) -> dict[tuple[int, ...], float]:
    """Return for every rank that is full or a multiple of `round_to` the sum of the squared singular values that it leaves out."""
    squares = squared_singular_values(matrix).sum(0)
    left_out = squares.flip(0).cumsum(0).flip(0)[1:].tolist()
    return {(rank,): tail for rank, tail in enumerate([*left_out, 0.0], start=1) if rank % round_to == 0 or rank == len(squares)}


def split(matrix: Tensor, rank: int, *, root: Tensor | None = None, balance: bool = True) -> tuple[Tensor, Tensor]:
    """Return `(reduce, expand)` with `expand @ reduce` the best approximation of a given rank, measured after `root` on the right."""
    expand = leading_left(matrix if root is None else matrix @ root, rank)
    reduce = expand.mT @ matrix
    if not balance:
        return reduce, expand
    scale = reduce.norm(dim=-1, keepdim=True).sqrt()
    safe = scale.where(scale > 0, 1)
    return reduce / safe, expand * scale.mT
