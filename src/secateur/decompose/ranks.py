"""Choose the rank of one layer: by hand, by the part that is removed, by energy, or by evidence (VBMF)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from secateur.decompose.calls import Call, workload
from secateur.decompose.factors import Decomposition, Rank, check, cost_at, kernel_for
from secateur.decompose.linalg import squared_singular_values
from secateur.decompose.spec import LayerSpec, Refusal, cost
from secateur.decompose.vbmf import calibrate_rank, vbmf_rank
from secateur.errors import SelectionError

Measure = Literal["macs", "params"]


class RankRule(Protocol):
    """A way of choosing a rank, or of saying that a layer is better left alone."""

    def __call__(self, spec: LayerSpec, kernel: Tensor, method: Decomposition) -> Rank | Refusal:
        """Choose the rank of a kernel `(groups, out, in, *extent)`; only called where the method applies."""


@dataclass(frozen=True)
class ByHand:
    """Use the given rank: one value for all modes, or one for each (Tucker: in, out)."""

    rank: int | tuple[int, ...]

    def __post_init__(self) -> None:
        ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        whole = all(type(rank) is int for rank in ranks)
        _require(whole and bool(ranks) and min(ranks) >= 1, "A rank is a whole number from 1 on, or one for each mode", self.rank)

    def __call__(self, spec: LayerSpec, kernel: Tensor, method: Decomposition) -> Rank | Refusal:
        limits = method.limits(spec)
        return (self.rank,) * len(limits) if isinstance(self.rank, int) else self.rank


@dataclass(frozen=True)
class ByRatio:
    """Use the largest rank that removes at least this part of the layer's parameters or multiply-adds.

    Tucker's ranks stay in proportion to the channels.
    """

    ratio: float
    of: Measure = "params"
    round_to: int = 1

    def __post_init__(self) -> None:
        _require(0 <= self.ratio < 1, "A ratio is the part that goes, from 0 to below 1", self.ratio)
        _require(self.of in get_args(Measure), f"A ratio is one of {' or '.join(get_args(Measure))}", self.of)
        _require(self.round_to >= 1, "Ranks are rounded to multiples of a whole number from 1 on", self.round_to)

    def __call__(self, spec: LayerSpec, kernel: Tensor, method: Decomposition) -> Rank | Refusal:
        allowed = (1 - self.ratio) * getattr(cost([spec]), self.of)
        rank = _largest(spec, method, allowed, of=self.of, round_to=self.round_to)
        return rank or Refusal(f"no rank removes {self.ratio:.0%} of its {self.of}")


@dataclass(frozen=True)
class ByEnergy:
    """Use the smallest rank that holds this part of the squared singular values, in each mode."""

    energy: float = 0.9

    def __post_init__(self) -> None:
        _require(0 < self.energy <= 1, "An energy is the part that is held, above 0 and at most 1", self.energy)

    def __call__(self, spec: LayerSpec, kernel: Tensor, method: Decomposition) -> Rank | Refusal:
        ranks = []
        for unfolding in method.unfoldings(kernel):
            held = squared_singular_values(unfolding).cumsum(-1)
            short = held < self.energy * held[..., -1:]
            ranks.append(min(int(short.sum(-1).max()) + 1, held.shape[-1]))
        return method.from_mode_ranks(tuple(ranks))


@dataclass(frozen=True)
class ByVBMF:
    """Use the rank that stands out of noise in each mode, moved by a calibration ratio in [-1, 1]: up is more accurate, down smaller.

    ByVBMF(calibration=0.2)    # 32 of 64 becomes 38
    """

    calibration: float = 0.0
    minimum: int = 1

    def __post_init__(self) -> None:
        _require(-1 <= self.calibration <= 1, "A calibration ratio lies between -1 and 1", self.calibration)
        _require(self.minimum >= 1, "The least rank is 1", self.minimum)

    def __call__(self, spec: LayerSpec, kernel: Tensor, method: Decomposition) -> Rank | Refusal:
        unfoldings = method.unfoldings(kernel)
        found = [vbmf_rank(unfolding) for unfolding in unfoldings]
        if min(found) == 0:
            return Refusal("VBMF finds nothing in its weight that stands out of noise")
        fulls = [min(unfolding.shape[-2:]) for unfolding in unfoldings]
        moved = [calibrate_rank(rank, full, self.calibration, minimum=self.minimum) for rank, full in zip(found, fulls, strict=True)]
        return method.from_mode_ranks(tuple(moved))


def _require(holds: bool, rule: str, found: object) -> None:
    if not holds:
        raise SelectionError(f"{rule}, not {found!r}.")


def choose_rank(
    layer: nn.Module,
    method: Decomposition,
    rule: RankRule,
    *,
    accept_dearer: bool = False,
    trust_forward: bool = False,
    size: Sequence[int] | None = None,
) -> Rank | Refusal:
    """Choose a layer's rank and check that the method applies at it and makes the layer cheaper."""
    found = kernel_for(layer, method, trust_forward=trust_forward)
    if isinstance(found, Refusal):
        return found
    spec, kernel = found
    with torch.no_grad():
        rank = rule(spec, kernel, method)
    return rank if isinstance(rank, Refusal) else check(spec, method, rank, accept_dearer=accept_dearer, size=size)


def ladder(spec: LayerSpec, method: Decomposition, *, round_to: int = 1) -> list[Rank]:
    """List ranks from small to full, in proportion where there are several, in steps of `round_to` of the largest."""
    limits = method.limits(spec)
    longest = max(limits)
    steps = [*range(round_to, longest, round_to), longest]
    return [tuple(_stepped(step * limit / longest, limit, round_to) for limit in limits) for step in steps]


def break_even(spec: LayerSpec, method: Decomposition, *, of: Measure = "macs", size: Sequence[int] | None = None) -> Rank | None:
    """Return the largest rank at which the factors still cost less than the layer, if there is one."""
    calls = () if size is None else (Call(1, tuple(size)),)
    return _largest(spec, method, getattr(workload([spec], calls), of) - 1, of=of, calls=calls)


def _stepped(value: float, limit: int, round_to: int) -> int:
    return min(limit, max(min(round_to, limit), round_to * round(value / round_to)))


def _largest(
    spec: LayerSpec, method: Decomposition, allowed: float, *, of: Measure, calls: Sequence[Call] = (), round_to: int = 1
) -> Rank | None:
    # Cost grows along the ladder but where a mode becomes full; the rank that bisection ends on has been checked all the same.
    ranks = ladder(spec, method, round_to=round_to)
    fitting = bisect_right(ranks, allowed, key=lambda rank: getattr(cost_at(spec, method, rank, calls), of))
    return ranks[fitting - 1] if fitting else None
