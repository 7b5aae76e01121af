"""Error-preserving correction: smaller rank-one terms at the same error.

Phan et al., ECCV 2020. Canonical fits of kernels hold large terms that cancel each other, and fine-tuning such factors diverges. For one
factor A at a time, the others being given with Khatri-Rao product Z and term weights w_r = prod ||others_r||^2:

    minimise sum_r w_r ||a_r||^2   subject to   ||T - A Z^T||_F <= delta

which is ridge regression with the one ridge at which the error is delta: with unit columns Z' = Z w^(-1/2), Z'^T Z' = V diag(e) V^T,
G = T Z' and b_k = (G V)_k e_k^(-1/2), the factor is A' = G V diag(mu / (1 + mu e)) V^T where mu solves
sum_k ||b_k||^2 / (1 + mu e_k)^2 = delta^2 - ||T||^2 + ||b||^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.decompose.als import Fit, Target, chosen, improve, term_energy

_NEWTON_STEPS = 60
_EXACT = 1e-13
# Of the energy of the kernel, which is one.
_VANISHED = 1e-120


def error_preserving_correction(target: Target, fit: Fit, *, slack: float = 1.0, sweeps: int = 50, tolerance: float = 1e-4) -> Fit:
    """Shrink the terms of a fit while its error stays at most `slack` times what it is.

    Stops when a sweep lowers the sum of squared term norms by less than `tolerance` of it.
    """
    goal = _Constrained(target.energy, slack**2 * fit.error.clamp_min(0))
    found = improve(target, fit.factors, sweeps=sweeps, tolerance=tolerance, goal=goal)
    smaller = goal.cost(found) < term_energy(fit.factors)
    return Fit(chosen(smaller, found.factors, fit.factors), torch.where(smaller, found.error, fit.error))


@dataclass(frozen=True)
class _Constrained:
    """Small terms with a squared error of at most `bound`: a factor becomes the smallest with it, or stays where rounding leaves none."""

    energy: Tensor
    bound: Tensor

    def cost(self, fit: Fit) -> Tensor:
        kept = fit.error <= self.bound * (1 + 1e-10) + _EXACT * self.energy
        return torch.where(kept, term_energy(fit.factors), torch.inf)

    def renewed(self, contracted: Tensor, factor: Tensor, others: Tensor) -> Tensor:
        squares = others.diagonal(dim1=-2, dim2=-1)
        # Terms that have all but vanished go: their squares have no place in any precision.
        alive = squares > _VANISHED
        safe = squares.where(alive, 1).sqrt()
        values, vectors = torch.linalg.eigh(others / (safe.unsqueeze(-1) * safe.unsqueeze(-2)))
        values = values.clamp_min(0)
        rotated = torch.where(alive.unsqueeze(-2), contracted / safe.unsqueeze(-2), 0) @ vectors
        held = values > _EXACT * values.amax(-1, keepdim=True)
        captured = torch.where(held, rotated.square().sum(-2) / values.where(held, 1), 0)
        allowed = self.bound - self.energy + captured.sum(-1)
        feasible = allowed > _EXACT * self.energy
        if not bool(feasible.any()):
            return factor
        # Where nothing is allowed all that is captured stays, which takes no search.
        strength, found = _ridge_strength(captured, values, torch.where(feasible, allowed, captured.sum(-1)))
        shrunk = strength.unsqueeze(-1) / (1 + strength.unsqueeze(-1) * values)
        solution = (rotated * shrunk.unsqueeze(-2)) @ vectors.mT / safe.unsqueeze(-2)
        return torch.where((found & feasible)[..., None, None], solution, factor)


def _ridge_strength(captured: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Solve sum captured / (1 + mu values)^2 = allowed for mu, and say where that succeeded.

    Newton on the inverse root of the sum, which is concave in mu: from below it approaches the root without overshooting. It begins where
    the root would be if all values were the largest.
    """
    wanted = allowed.clamp_min(torch.finfo(allowed.dtype).tiny)
    largest = values.amax(-1).clamp_min(torch.finfo(allowed.dtype).tiny)
    strength = ((captured.sum(-1) / wanted).sqrt() - 1).clamp_min(0) / largest
    for _ in range(_NEWTON_STEPS):
        shrink = 1 / (1 + strength.unsqueeze(-1) * values)
        terms = captured * shrink.square()
        total = terms.sum(-1)
        excess = (total / wanted).sqrt() - 1
        if bool((excess <= _EXACT).all()):
            break
        slope = (terms * shrink * values).sum(-1).clamp_min(torch.finfo(allowed.dtype).tiny)
        strength = (strength + total / slope * excess).clamp_min(0)
    return strength, excess <= 1e-9
