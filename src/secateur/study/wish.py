"""How a person wants layers factorized, in one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.decompose import SVD, ByVBMF, Decomposition, RankRule, Refusal, Tucker, settings_of
from secateur.plan import Factorize, Fit
from secateur.study.calibration import Calibration
from secateur.target import Target

RankChoice = int | tuple[int, ...] | RankRule
"""A rank for all modes, one for each mode, or a rule that finds it."""
USUAL: tuple[Decomposition, ...] = (Tucker(), SVD())
"""Tucker for kernels with an extent, SVD for matrices."""
Found = Factorize | Refusal


@dataclass(frozen=True)
class Decompose:
    """How layers are factorized: the settings of :meth:`Study.plan_decomposition` in one value.

    >>> Decompose(SVD(), rank=ByEnergy(0.9)).fit is None
    True
    """

    method: Decomposition | Sequence[Decomposition] = USUAL
    """Of several, the first that applies to a layer, or with a target the one that loses least."""
    rank: RankChoice | Mapping[str, RankChoice] | None = None
    fit: Fit | None = None
    """What factors are fitted to; by default inputs where there are calibration data."""
    correct_bias: bool = True
    round_to: int = 1
    accept_dearer: bool = False
    weighted: bool | None = None
    """Let errors of outputs count as the model's outputs depend on them; by default where factors are fitted to inputs and that can be
    told, which takes derivatives."""
    timed: bool = False
    """Leave a layer as it is where its factors are measured to be slower."""
    strict: bool = False
    """Raise an error where a layer that factors could replace stays as it is, in place of a note."""

    @property
    def methods(self) -> tuple[Decomposition, ...]:
        """The methods, in the order in which they are asked."""
        return tuple(self.method) if isinstance(self.method, Sequence) else (self.method,)

    def edit(self, layer: str, method: Decomposition, rank: tuple[int, ...]) -> Factorize:
        """The edit for one layer."""
        return Factorize(layer, method.name, rank, settings_of(method), self.fit or "weights", self.correct_bias, bool(self.weighted))

    def to_json(self, target: Target | None, held: Calibration | None) -> dict[str, Any]:
        """What a plan says of how its ranks came about."""
        return {
            "methods": [repr(method) for method in self.methods],
            "rank": None if target is not None else repr(ByVBMF() if self.rank is None else self.rank),
            "target": None if target is None else repr(target),
            "fit": self.fit,
            "weighted": bool(self.weighted),
            "calibration": None if held is None else held.to_json(),
        }
