"""How many components of a matrix stand out of noise: empirical variational Bayesian matrix factorisation, solved exactly.

Nakajima et al., JMLR 14 (2013). With V `(L, M)`, L <= M, a = L / M and Phi(z) = ln(1 + z) / z - 1/2, let t be the root of
Phi(t) + Phi(t / a) = 0 and x = (1 + t)(1 + a / t). A singular value survives if it exceeds sqrt(M s2 x), where the noise variance s2
minimises the free energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from secateur.decompose.linalg import squared_singular_values

# Relative to unit mean square; below this float64 Gram matrices hold rounding, not noise.
_LEAST_VARIANCE = 1e-10
_GRID = 64


@dataclass(frozen=True)
class Evidence:
    """The rank that a matrix shows above its noise, the variance of that noise, and the singular value that divides them."""

    rank: int
    noise_variance: float
    threshold: float


def evbmf(matrix: Tensor) -> Evidence:
    """Estimate the rank and the noise of a matrix `(rows, columns)`; rank 0 means that nothing stands out."""
    short, long = sorted(matrix.shape)
    squares = squared_singular_values(matrix.double()).cpu().numpy()
    mean_square = float(squares.sum()) / (short * long)
    if mean_square == 0:
        return Evidence(0, 0.0, 0.0)
    # At unit mean square the tolerances of the search mean the same for every matrix.
    squares = squares / mean_square
    cut = _cut(short / long)
    variance = _noise_variance(squares, short, long, cut)
    threshold = long * variance * cut
    return Evidence(int((squares > threshold).sum()), variance * mean_square, math.sqrt(threshold * mean_square))


@lru_cache(maxsize=256)
def _cut(ratio: float) -> float:
    """Solve for the least surviving squared singular value, in units of `M s2`."""

    def balance(log_t: float) -> float:
        t = math.exp(log_t)
        return math.log1p(t) / t + math.log1p(t / ratio) / (t / ratio) - 1

    t = math.exp(brentq(balance, -20, 20, xtol=1e-14))
    return (1 + t) * (1 + ratio / t)


def _noise_variance(squares: NDArray[np.float64], short: int, long: int, cut: float) -> float:
    low, high = _bounds(squares, short, long, cut)
    if low >= high:
        return high
    # The free energy has a kink wherever a component crosses the cut, so a grid finds the valley and a bounded search its floor.
    grid = np.linspace(math.log(low), math.log(high), _GRID)
    energies = _free_energies(grid, squares, short, long, cut)
    at = int(np.argmin(energies))
    around = (grid[max(at - 1, 0)], grid[min(at + 1, _GRID - 1)])

    def energy(point: float) -> float:
        return float(_free_energies(np.asarray(point), squares, short, long, cut))

    found = minimize_scalar(energy, bounds=around, method="bounded", options={"xatol": 1e-9})
    return math.exp(float(found.x) if found.fun < energies[at] else float(grid[at]))


def _bounds(squares: NDArray[np.float64], short: int, long: int, cut: float) -> tuple[float, float]:
    most = min(math.ceil(short / (1 + short / long)) - 1, short - 1)
    rest = squares[most:]
    low = max(float(rest[0]) / (long * cut), float(rest.mean()) / long, _LEAST_VARIANCE)
    return low, float(squares.sum()) / (short * long)


def _free_energies(
    log_variances: NDArray[np.float64], squares: NDArray[np.float64], short: int, long: int, cut: float
) -> NDArray[np.float64]:
    """Evaluate the free energy, up to a constant, as a function of the noise variance, at all of these together."""
    ratio = short / long
    # Components below rounding cannot be told from each other; the floor adds the same constant at every variance.
    scaled = np.maximum(squares, _LEAST_VARIANCE**2) / (long * np.exp(log_variances[..., None]))
    excess = np.where(scaled > cut, scaled - (1 + ratio), 0)
    tau = (excess + np.sqrt(np.maximum(excess**2 - 4 * ratio, 0))) / 2
    each = scaled - tau + np.log((tau + 1) / scaled) + ratio * np.log1p(tau / ratio)
    return np.asarray(each.sum(-1))


def calibrate_rank(rank: int, full: int, ratio: float, *, minimum: int = 1) -> int:
    """Move a rank towards the full one (ratio > 0) or away from it (ratio < 0).

        rank + int(ratio * (full - rank)), int truncating toward zero, at least `minimum` and at most `full`

    Rank 32 of 64 becomes 38 at 0.2 and 26 at -0.2.
    """
    return max(min(minimum, full), min(full, rank + int(ratio * (full - rank))))


def vbmf_rank(unfolding: Tensor) -> int:
    """Return the largest rank that VBMF finds among the groups of `(groups, rows, columns)`."""
    return max(evbmf(matrix).rank for matrix in torch.unbind(unfolding))
