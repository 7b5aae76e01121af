"""Least squares from sums over rows: what they hold is enough for any ridge, and for choosing it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from secateur.score.ranks import summed, total

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, relative to the mean variance of an input."""
USUAL = RIDGES[len(RIDGES) // 2]
"""The ridge that is tried first."""
PLENTY = 8
"""Rows for each input from which fits to one half of the rows tell enough of the ridge."""
WAITING = 1 << 22
"""Numbers that wait to be multiplied."""
FEW = 1 << 28
"""Products that are taken in double precision."""
_TRIES = 8
"""Ridges, each a hundred times the last, that are tried where rounding has left no positive matrix."""
_ROUNDING = 1e-7
"""Of sums of products in single precision, relative to the squares of means."""
_STRIP = 512
"""Inputs whose products with those behind them are taken at once."""


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
        """Take in rows: ``(groups, n, in)`` and ``(groups, n, out)``; many products in single precision, few in that of the sums.

        So how the rows of a small layer fall into batches, or to processes, leaves no trace.
        """
        few = x.numel() * (x.shape[2] + y.shape[2]) <= FEW
        x, y = (v.to(self.xx.dtype) if few or v.dtype == torch.float64 else v.float() for v in (x, y))
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.y += y.sum(1)
        self._add_squares(x)
        self.yx += y.mT @ x
        self.yy += y.square().sum(1)

    def _add_squares(self, x: Tensor) -> None:
        """Products of all inputs, each pair of strips multiplied once."""
        for start in range(0, x.shape[2], _STRIP):
            stop = start + _STRIP
            products = x[:, :, start:stop].mT @ x[:, :, start:]
            self.xx[:, start:stop, start:] += products
            self.xx[:, stop:, start:stop] += products[:, :, _STRIP:].mT

    def shared(self) -> Sums:
        """Sums over the rows of all processes."""
        parts = (summed(part) for part in (self.x, self.y, self.xx, self.yx, self.yy))
        return Sums(total(self.count), *parts)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count, self.x + other.x, self.y + other.y, self.xx + other.xx, self.yx + other.yx, self.yy + other.yy
        )


@dataclass
class Rows:
    """Rows on their way into sums, multiplied as many at a time as a product is worth it for."""

    _sums: Sums
    _stage: int = 1
    """How many layers share the memory for rows that wait."""
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _size: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in rows: ``(groups, n, in)`` and ``(groups, n, out)``."""
        self._waiting.append((x, y))
        self._size += x.numel() + y.numel()
        if self._size * self._stage >= WAITING:
            self.sums()

    def sums(self) -> Sums:
        """Sums over all rows so far."""
        if self._waiting:
            x, y = (torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*self._waiting, strict=True))
            self._sums.add(x, y)
            self._waiting, self._size = [], 0
        return self._sums


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
        xx, yx = (
            torch.baddbmm(squares, v.unsqueeze(-1), x.unsqueeze(-2), beta=1 / n, alpha=-1) for squares, v in ((sums.xx, x), (sums.yx, y))
        )
        return cls(x, y, xx, yx, sums.yy / n - y.square())

    def error(self, matrix: Tensor) -> float:
        """Mean squared distance of ``matrix @ x`` from y, the best shift added: the sum over groups and outputs."""
        return float(self.yy.sum()) - self.gain(matrix, self.yx)

    def gain(self, step: Tensor, rest: Tensor) -> float:
        """By how much the error falls as a matrix with this :meth:`rest` takes a step."""
        return float((step * (2 * rest - step @ self.xx.to(step))).sum())

    def rest(self, matrix: Tensor) -> Tensor:
        """What a matrix leaves of the covariances between outputs and inputs."""
        return self.yx - matrix @ self.xx

    def step(self, rest: Tensor, ridge: float) -> Tensor:
        """What to add to a matrix with this :meth:`rest` for least squares, drawn towards it as strongly as ``ridge`` says.

        Nothing where that cannot be solved. The matrix is factorized as precisely as it is held, and solved as precisely as the rest is.
        """
        if not math.isfinite(ridge):
            return torch.zeros_like(rest)
        scale = self._scale()[:, None]
        for step in range(_TRIES):
            strength = max(ridge, 1e-12) * 100**step if step else ridge
            loaded = self.xx.clone()
            loaded.diagonal(dim1=-2, dim2=-1).add_(strength * scale)
            factor, info = torch.linalg.cholesky_ex(loaded)
            if not bool(info.any()):
                return _solved(factor.to(rest), rest.mT).mT
        return torch.zeros_like(rest)

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


def fit(folds: Sequence[Sums], prior: Tensor, shift: Tensor | None, *, ridge: float | None = None, first: float = USUAL) -> Fit:
    """Fit ``y = matrix @ x + shift`` to the rows of all folds.

        matrix = prior + (C_yx - prior C_xx) (C_xx + ridge mean(diag C_xx) I)^-1,        shift = mean(y) - matrix mean(x)

    The ridge draws towards the prior, so that inputs without evidence keep their weights and no ridge does worse on these
    rows than the prior. Without a given one, the ridge is the one of :data:`RIDGES`, or infinity (the prior itself), with
    the smallest error on the other folds when fitted to the first, and where that has fewer than :data:`PLENTY` rows for each
    input also the other way round; from the ``first`` one on they are tried as long as the error falls. ``shift`` is the shift
    so far; with ``None`` there is none and moments are taken about zero.
    """
    centred = shift is not None
    prior = prior.to(folds[0].xx)
    chosen = ridge if ridge is not None else _ridge(folds, prior, first, centred=centred)
    whole = Moments.of(_total(folds), centred=centred)
    rest = whole.rest(prior)
    matrix = prior + whole.step(rest, chosen)
    new = whole.y - (matrix @ whole.x.unsqueeze(-1)).squeeze(-1)
    scale = max(float(whole.yy.sum()), torch.finfo(whole.yy.dtype).tiny)
    offset = 0.0 if shift is None else float((whole.y - (prior @ whole.x.unsqueeze(-1)).squeeze(-1) - shift.to(new)).square().sum())
    before = float(whole.yy.sum() - (prior * (whole.yx + rest)).sum())
    after = before - whole.gain(matrix - prior, rest)
    return Fit(matrix, new, chosen, (before + offset) / scale, max(after, 0.0) / scale)


def _ridge(folds: Sequence[Sums], prior: Tensor, first: float, *, centred: bool) -> float:
    filled = [f for f in folds if f.count]
    if len(filled) < 2:
        return USUAL
    halves = [_Half.of(half, prior, centred=centred) for half in (filled[0], _total(filled[1:]))]

    ways = [halves[::-1], halves][: 1 if halves[0].count >= PLENTY * prior.shape[2] else 2]

    @cache
    def error(ridge: float) -> float:
        return -sum(half.gain(other, ridge) for half, other in ways)

    best = RIDGES.index(first)
    for step in (-1, 1):
        while 0 <= best + step < len(RIDGES) and error(RIDGES[best + step]) < error(RIDGES[best]):
            best += step
    return min((RIDGES[best], math.inf), key=error)


@dataclass(frozen=True)
class _Half:
    """One half of the rows, to be fitted to and to try fits on."""

    count: int
    moments: Moments
    rest: Tensor
    """In single precision, which tells one ridge from the next."""

    @classmethod
    def of(cls, sums: Sums, prior: Tensor, *, centred: bool) -> _Half:
        """What is needed of sums to compare ridges."""
        moments = Moments.of(sums, centred=centred)
        return cls(sums.count, moments, moments.rest(prior).float())

    def gain(self, other: _Half, ridge: float) -> float:
        """By how much the squared error on this half falls with the fit to the other."""
        return self.count * self.moments.gain(other.moments.step(other.rest, ridge), self.rest)


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    """What a matrix with this lower Cholesky factor makes ``right`` of."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return whole


def _total(folds: Sequence[Sums]) -> Sums:
    return sum(folds[1:], start=folds[0])


def _precision(device: torch.device | str) -> torch.dtype:
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
