"""Alternating least squares for sums of rank-one kernels, from several starts at once, with extrapolation.

Factors are `(starts, groups, n, r)`: out, in, then one for each spatial mode. The two large modes cost one matrix product each a sweep, for
all starts together; the spatial modes ride on those products for nothing, so each is updated twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from secateur.decompose.hooi import Unfolded
from secateur.decompose.linalg import leading_left, ridge_solve

Factors = tuple[Tensor, ...]

# Sweeps after which starts are compared.
_HEAT = 12
_GROWTH, _SHORTEST, _LONGEST = 1.25, 0.5, 8.0


@dataclass(frozen=True)
class Target:
    """The kernel to be fitted, `(groups, out, in, *modes)`, with its layouts and its squared norm `(groups,)`."""

    kernel: Tensor
    unfolded: Unfolded
    energy: Tensor

    @classmethod
    def of(cls, kernel: Tensor) -> Target:
        """Prepare a kernel."""
        return cls(kernel, Unfolded.of(kernel), kernel.flatten(1).square().sum(1))

    def contract_in(self, factor: Tensor) -> Tensor:
        """Contract the input channels with `(starts, groups, in, r)`, giving `(starts, groups, out, taps, r)`."""
        return _apart(self.unfolded.contract_in(_together(factor)), factor.shape[0])

    def contract_out(self, factor: Tensor) -> Tensor:
        """Contract the output channels with `(starts, groups, out, r)`, giving `(starts, groups, in, taps, r)`."""
        return _apart(self.unfolded.contract_out(_together(factor)), factor.shape[0])


def _together(factor: Tensor) -> Tensor:
    return factor.permute(1, 2, 0, 3).flatten(2)


def _apart(product: Tensor, starts: int) -> Tensor:
    return torch.unflatten(product, -1, (starts, -1)).permute(3, 0, 1, 2, 4)


@dataclass(frozen=True)
class Fit:
    """Factors and the squared error `(starts, groups)` of each."""

    factors: Factors
    error: Tensor

    def best(self, count: int) -> Fit:
        """Keep for each group its `count` best starts, best first."""
        order = self.error.argsort(0)[:count]
        group = torch.arange(order.shape[1], device=order.device)
        return Fit(tuple(factor[order, group] for factor in self.factors), self.error[order, group])


class Goal(Protocol):
    """What a fit is for: how a factor is renewed when the others are given, and which of two fits is better."""

    def renewed(self, contracted: Tensor, factor: Tensor, others: Tensor) -> Tensor:
        """Return a factor `(starts, groups, n, r)` from the contraction of the kernel with the other factors, of the same shape.

        `others` is the Gram matrix `(starts, groups, r, r)` of the terms without this factor.
        """

    def cost(self, fit: Fit) -> Tensor:
        """Return what is to be low, `(starts, groups)`."""


@dataclass(frozen=True)
class LeastSquares:
    """Small errors, with a price on the energy of the terms.

    Without a price fits of kernels go on lowering their error by ever larger terms that cancel each other. The ridge that a price adds to
    a factor is, column by column, the energy of the rest of the term.
    """

    price: float = 0.0

    def renewed(self, contracted: Tensor, factor: Tensor, others: Tensor) -> Tensor:
        raised = others.clone()
        raised.diagonal(dim1=-2, dim2=-1).mul_(1 + self.price)
        return ridge_solve(contracted, raised)

    def cost(self, fit: Fit) -> Tensor:
        return fit.error + self.price * term_energy(fit.factors) if self.price else fit.error


def term_energy(factors: Factors) -> Tensor:
    """Sum the squared norms of the rank-one terms, `(starts, groups)`."""
    energies = torch.stack([factor.square().sum(-2) for factor in factors])
    return energies.prod(0).sum(-1)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Multiply factors column by column: `(..., n1, r), (..., n2, r), ...` to `(..., n1 * n2 * ..., r)`."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(-2) * factor.unsqueeze(-3)).flatten(-3, -2)
    return product


def sweep(target: Target, factors: Factors, goal: Goal) -> Fit:
    """Update every factor once, the spatial ones twice, balance them, and measure the error."""
    now, grams = list(factors), [factor.mT @ factor for factor in factors]

    def renew(mode: int, contracted: Tensor) -> None:
        now[mode] = goal.renewed(contracted, now[mode], _product([gram for other, gram in enumerate(grams) if other != mode]))
        grams[mode] = now[mode].mT @ now[mode]

    for mode, contract in ((0, target.contract_in), (1, target.contract_out)):
        partial = contract(now[1 - mode])
        renew(mode, (partial * khatri_rao(now[2:]).unsqueeze(2)).sum(3))
        response = (partial * now[mode].unsqueeze(3)).sum(2)
        shaped = torch.unflatten(response, 2, [factor.shape[2] for factor in now[2:]])
        for axis in range(len(now) - 2):
            renew(2 + axis, _contract_others(shaped, now[2:], axis))
    overlap = (response * khatri_rao(now[2:])).sum((-2, -1))
    error = target.energy - 2 * overlap + _product(grams).sum((-2, -1))
    return Fit(_balanced(now, [gram.diagonal(dim1=-2, dim2=-1) for gram in grams]), error)


def _contract_others(shaped: Tensor, spatial: Sequence[Tensor], mode: int) -> Tensor:
    for other, factor in enumerate(spatial):
        if other != mode:
            view = [*factor.shape[:2], *(1,) * len(spatial), factor.shape[-1]]
            view[2 + other] = factor.shape[2]
            shaped = (shaped * factor.reshape(view)).sum(2 + other, keepdim=True)
    return shaped.flatten(2, -2)


def _product(grams: Sequence[Tensor]) -> Tensor:
    """Multiply Gram matrices elementwise: the Gram matrix of the Khatri-Rao product."""
    product = grams[0]
    for gram in grams[1:]:
        product = product * gram
    return product


def balance(factors: Sequence[Tensor]) -> Factors:
    """Give every column of a term the same norm in all factors, keeping the term; zero terms stay zero."""
    return _balanced(factors, [factor.square().sum(-2) for factor in factors])


def _balanced(factors: Sequence[Tensor], squares: Sequence[Tensor]) -> Factors:
    logs = torch.stack(list(squares)).log()
    # Of a zero term both are minus infinity.
    scales = ((logs.mean(0) - logs) / 2).exp().nan_to_num(0.0, 0.0)
    return tuple(factor * scale.unsqueeze(-2) for factor, scale in zip(factors, scales, strict=True))


_ERROR = LeastSquares()


def race(target: Target, starts: Factors, *, sweeps: int, tolerance: float, goal: Goal = _ERROR) -> Fit:
    """Fit from several starts for a few sweeps, then from the best one of each group until it has settled."""
    fit = improve(target, starts, sweeps=min(_HEAT, sweeps), tolerance=tolerance, goal=goal)
    return improve(target, fit.best(1).factors, sweeps=sweeps, tolerance=tolerance, goal=goal)


def improve(target: Target, factors: Factors, *, sweeps: int, tolerance: float, goal: Goal = _ERROR) -> Fit:
    """Improve factors by sweeps that start ahead of the last one, along the way that the last one went.

    The stride grows while the cost falls; a sweep that makes things worse is taken back and the next one goes without stride, so the cost
    never rises. Stops when a sweep without stride gains less than `tolerance` of it.
    """
    best = sweep(target, factors, goal)
    cost, previous = goal.cost(best), best.factors
    stride = torch.zeros_like(cost)
    for _ in range(sweeps - 1):
        trial = sweep(target, _ahead(best.factors, previous, stride), goal)
        tried = goal.cost(trial)
        better, slow = tried < cost, cost - tried <= tolerance * cost.abs() + 1e-14 * target.energy
        if bool((slow & (stride == 0)).all()):
            break
        previous = chosen(better, best.factors, previous)
        best = Fit(chosen(better, trial.factors, best.factors), torch.where(better, trial.error, best.error))
        cost = torch.where(better, tried, cost)
        stride = torch.where(better & ~slow, (stride * _GROWTH).clamp(_SHORTEST, _LONGEST), 0)
    return best


def chosen(condition: Tensor, yes: Factors, no: Factors) -> Factors:
    """Take one or the other factors of each start and group."""
    return tuple(torch.where(condition[..., None, None], a, b) for a, b in zip(yes, no, strict=True))


def _ahead(factors: Factors, previous: Factors, stride: Tensor) -> Factors:
    return tuple(now + stride[..., None, None] * (now - before) for now, before in zip(factors, previous, strict=True))


def subspace_start(kernel: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """Start from the leading subspace of each mode, filled up at random where the mode is smaller than the rank."""
    factors = []
    for mode in range(1, kernel.dim()):
        unfolding = kernel.movedim(mode, 1).flatten(2)
        known = leading_left(unfolding, min(rank, unfolding.shape[1]))
        missing = _normal((kernel.shape[0], kernel.shape[mode], rank - known.shape[2]), generator, kernel)
        factors.append(torch.cat([known, missing], 2))
    return tuple(factors)


def random_start(kernel: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """Start from normally distributed factors."""
    return tuple(_normal((kernel.shape[0], size, rank), generator, kernel) for size in kernel.shape[1:])


def tap_start(kernel: Tensor, rank: int) -> Factors:
    """Start from the largest singular components of the matrices at the single taps, which are rank-one terms already.

    Exact once the rank reaches taps * min(out, in).
    """
    groups, outputs, inputs, *modes = kernel.shape
    left, values, right = torch.linalg.svd(kernel.reshape(groups, outputs, inputs, -1).permute(0, 3, 1, 2), full_matrices=False)
    order = values.flatten(1).argsort(1, descending=True)[:, :rank]
    tap, component = order // values.shape[2], order % values.shape[2]
    group = torch.arange(groups, device=kernel.device).unsqueeze(1)
    out = left[group, tap, :, component] * values[group, tap, component].unsqueeze(-1)
    indices = torch.unravel_index(tap, modes)
    spatial = [functional.one_hot(index, size).to(kernel) for index, size in zip(indices, modes, strict=True)]
    rows = (out, right[group, tap, component], *spatial)
    return tuple(functional.pad(term.mT, (0, rank - term.shape[1])) for term in rows)


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
