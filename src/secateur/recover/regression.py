"""Least squares from sums over rows: what they hold is enough for any ridge, and for choosing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from secateur.score.ranks import summed, total

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, relative to the mean variance of an input."""
_TRIES = 8
"""Ridges, each a hundred times the last, that are tried where rounding has left no positive matrix."""
_ROUNDING = 1e-7
"""Of sums of products in single precision, relative to the squares of means."""


@dataclass
class Sums:
    """Sums over rows of inputs x and targets y, for each of several groups, in double precision.

    They add up: what two passes gathered is what one pass over both sets of rows would have gathered.
    """

    count: int
    x: Tensor
    """``(groups, in)``"""
    y: Tensor
    """``(groups, out)``"""
    xx: Tensor
    """``(groups, in, in)``"""
    yx: Tensor
    """``(groups, out, in)``"""
    yy: Tensor
    """Squares: ``(groups, out)``."""

    @classmethod
    def zeros(cls, groups: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> Sums:
        """Sums over no rows."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=_precision(device), device=device)

        return cls(0, empty(inputs), empty(outputs), empty(inputs, inputs), empty(outputs, inputs), empty(outputs))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in rows: ``(groups, n, in)`` and ``(groups, n, out)``; products of a batch in single precision or better."""
        x, y = (v if v.dtype == torch.float64 else v.float() for v in (x, y))
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.y += y.sum(1)
        self.xx += x.mT @ x
        self.yx += y.mT @ x
        self.yy += y.square().sum(1)

    def shared(self) -> Sums:
        """Sums over the rows of all processes."""
        parts = (summed(part) for part in (self.x, self.y, self.xx, self.yx, self.yy))
        return Sums(total(self.count), *parts)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count, self.x + other.x, self.y + other.y, self.xx + other.xx, self.yx + other.yx, self.yy + other.yy
        )


@dataclass(frozen=True)
class Moments:
    """Second moments of rows, about their means or about zero."""

    x: Tensor
    y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    @classmethod
    def of(cls, sums: Sums, *, centred: bool) -> Moments:
        """Averages of sums; without ``centred`` the means count as zero."""
        n = max(sums.count, 1)
        x, y = (v / n if centred else torch.zeros_like(v) for v in (sums.x, sums.y))
        xx = sums.xx / n - x.unsqueeze(-1) * x.unsqueeze(-2)
        yx = sums.yx / n - y.unsqueeze(-1) * x.unsqueeze(-2)
        return cls(x, y, xx, yx, sums.yy / n - y.square())

    def error(self, matrix: Tensor) -> float:
        """Mean squared distance of ``matrix @ x`` from y, the best shift added: the sum over groups and outputs."""
        product = matrix @ self.xx
        return float(self.yy.sum() - 2 * (matrix * self.yx).sum() + (matrix * product).sum())

    def solve(self, prior: Tensor, ridge: float) -> Tensor:
        """The matrix of least squares, drawn towards ``prior`` as strongly as ``ridge`` says; ``prior`` where that cannot be solved."""
        if not math.isfinite(ridge):
            return prior
        scale, rest = self._scale()[:, None, None], self.yx - prior @ self.xx
        identity = torch.eye(self.xx.shape[-1], dtype=self.xx.dtype, device=self.xx.device)
        for step in range(_TRIES):
            strength = max(ridge, 1e-12) * 100**step if step else ridge
            factor, info = torch.linalg.cholesky_ex(self.xx + strength * scale * identity)
            if not bool(info.any()):
                return prior + torch.cholesky_solve(rest.mT, factor).mT
        return prior

    def _scale(self) -> Tensor:
        """The mean variance of an input, by group, not below the rounding of the sums; one where nothing varies."""
        scale = self.xx.diagonal(dim1=-2, dim2=-1).mean(-1).maximum(_ROUNDING * self.x.square().mean(-1))
        return torch.where(scale > 0, scale, torch.ones_like(scale))


@dataclass(frozen=True)
class Fit:
    """A matrix ``(groups, out, in)``, a shift ``(groups, out)``, and how well they do on the rows they were fitted to."""

    matrix: Tensor
    shift: Tensor
    ridge: float
    before: float
    """Error of the prior without a shift, as a share of the targets' variance (of their squares without shifts)."""
    after: float


def fit(folds: Sequence[Sums], prior: Tensor, shift: Tensor | None, *, ridge: float | None = None) -> Fit:
    """Fit ``y = matrix @ x + shift`` to the rows of all folds.

        matrix = prior + (C_yx - prior C_xx) (C_xx + ridge mean(diag C_xx) I)^-1,        shift = mean(y) - matrix mean(x)

    The ridge draws towards the prior, so that inputs without evidence keep their weights and no ridge does worse on these
    rows than the prior. Without a given one, the ridge is the one of :data:`RIDGES`, or infinity (the prior itself), with
    the smallest error on each fold when fitted to the others; from the middle one on they are tried as long as the error
    falls. ``shift`` is the shift so far; with ``None`` there is none and moments are taken about zero.
    """
    centred = shift is not None
    prior = prior.to(folds[0].xx)
    whole = Moments.of(_total(folds), centred=centred)
    chosen = ridge if ridge is not None else _ridge(folds, prior, centred=centred)
    matrix = whole.solve(prior, chosen)
    new = whole.y - (matrix @ whole.x.unsqueeze(-1)).squeeze(-1)
    scale = max(float(whole.yy.sum()), torch.finfo(whole.yy.dtype).tiny)
    offset = 0.0 if shift is None else float((whole.y - (prior @ whole.x.unsqueeze(-1)).squeeze(-1) - shift.to(new)).square().sum())
    return Fit(matrix, new, chosen, (whole.error(prior) + offset) / scale, max(whole.error(matrix), 0.0) / scale)


def _ridge(folds: Sequence[Sums], prior: Tensor, *, centred: bool) -> float:
    filled = [f for f in folds if f.count]
    if len(filled) < 2:
        return RIDGES[2]
    parts = [(f.count, _rest(filled, f, centred=centred), Moments.of(f, centred=centred)) for f in filled]

    @cache
    def error(ridge: float) -> float:
        return sum(count * test.error(rest.solve(prior, ridge)) for count, rest, test in parts)

    best = len(RIDGES) // 2
    for step in (-1, 1):
        while 0 <= best + step < len(RIDGES) and error(RIDGES[best + step]) < error(RIDGES[best]):
            best += step
    return min((RIDGES[best], math.inf), key=error)


def _rest(folds: Sequence[Sums], held: Sums, *, centred: bool) -> Moments:
    return Moments.of(_total([f for f in folds if f is not held]), centred=centred)


def _total(folds: Sequence[Sums]) -> Sums:
    return sum(folds[1:], start=folds[0])


def _precision(device: torch.device | str) -> torch.dtype:
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
