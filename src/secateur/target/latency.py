"""A target of latency: what the times of layers predict is built and timed, in turns with the dense model, and the prediction corrected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

from secateur.capture import Capture
from secateur.errors import SelectionError
from secateur.measure import Latency, OnnxComparison, compare_latency
from secateur.rewrite import Cut, draft
from secateur.score.ranks import of_first
from secateur.target.target import Runtime, Target

T = TypeVar("T")
TRIES = 6
"""Models that are built and timed at most."""
NEAR = 0.02
"""A model that measures within the target, and less than this below it, is taken."""

Compare = Callable[..., Mapping[str, Latency]]
"""Times models by name on the same inputs, as :func:`~secateur.measure.compare_latency` does."""


@dataclass(frozen=True)
class Timed:
    """Latencies of the dense and a smaller model, from one run."""

    dense: Latency
    compressed: Latency

    @property
    def share(self) -> float:
        """The part of the dense model's median that remains."""
        return self.compressed.median_ms / self.dense.median_ms

    def __str__(self) -> str:
        return f"{self.share:.1%}: {self.compressed}; dense {self.dense.median_ms:.3g} ms"


@dataclass(frozen=True)
class Stopwatch:
    """Times a smaller model and the dense one in turns, in a short and a longer run."""

    repeats: int = 15
    budget_s: float = 5.0
    longer: int = 3
    """How many times as long a run is that confirms another."""
    compare: Compare = compare_latency

    @classmethod
    def of(cls, runtime: Runtime) -> Stopwatch:
        """One that times models as this runs them."""
        return cls() if runtime == "torch" else cls(compare=OnnxComparison())

    def __call__(self, cut: Cut, *, confirm: bool = False) -> Timed:
        """The latencies of the dense model and of the smaller one that a cut leaves."""
        return self.beside(cut.solution.walk.capture, draft(cut), confirm=confirm)

    def beside(self, source: Capture, small: nn.Module, *, confirm: bool = False) -> Timed:
        """The latencies of a captured model and of a smaller one; of several processes those that the first has measured."""
        times = self.longer if confirm else 1
        models: dict[str, Any] = {"dense": source.model, "compressed": small}
        timed = self.compare(models, source.args, source.kwargs, warmup=5, repeats=self.repeats * times, budget_s=self.budget_s * times)
        return of_first(Timed(timed["dense"], timed["compressed"]))


@dataclass(frozen=True)
class Forecast:
    """What the times of layers say of a model and of a smaller one, and what was measured of the two."""

    predicted_dense_ms: float
    predicted_ms: float
    measured: Timed
    tried: int
    """How many smaller models had been built and timed when this one was."""

    def to_json(self) -> dict[str, Any]:
        """What a plan says of its latency."""
        return {
            "predicted_ms": {"dense": self.predicted_dense_ms, "compressed": self.predicted_ms},
            "measured_ms": {"dense": self.measured.dense.median_ms, "compressed": self.measured.compressed.median_ms},
            "conditions": self.measured.dense.to_json(),
            "tried": self.tried,
        }

    def __str__(self) -> str:
        share = self.predicted_ms / max(self.predicted_dense_ms, 1e-9)
        return f"predicted {share:.1%} by the times of its layers, measured {self.measured}"


@dataclass(eq=False)
class LatencySearch(Generic[T]):
    """Plan for a predicted part, measure, and plan for another until what is measured lies just within the target.

    A prediction is off by a factor that hardly changes from one plan to a similar one, so a part that missed the target is multiplied by
    what it missed it by, within the parts that were found too slow and fast enough before. Clocks are noisy, so each miss leaves more room.
    """

    target: Target
    within: Callable[[float], T | None]
    """What is predicted to leave at most a part, if anything is."""
    least: Callable[[], T]
    """What leaves least of all."""
    stopwatch: Callable[..., Timed]
    """Times what was planned, longer where that is to ``confirm`` another run."""
    dense_ms: float
    """The dense model's latency, as it is predicted."""
    predicted_ms: Callable[[T], float]
    tried: int = 0
    best: tuple[T, Forecast] | None = None
    fastest: Timed | None = None
    _low: float = 0.0
    _high: float = 1.0

    def run(self) -> tuple[T, Forecast]:
        """The slowest plan that measured within the target, in a short run and again in a longer one.

        Raises :class:`~secateur.errors.SelectionError` where nothing that was tried measures within the target.
        """
        goal, part = self.target.fraction, self.target.fraction
        while self.tried < TRIES and self._high - self._low > NEAR / 4:
            found = self.within(part)
            share = self._measured(self.least() if found is None else found, part)
            if goal * (1 - NEAR) <= share <= goal or (found is None and share > goal):
                break
            room = NEAR * (0.5 + (self.tried - 1 if self.best is None else 0))
            wanted = part * goal * (1 - room) / share
            part = wanted if self._low < wanted < self._high else (self._low + self._high) / 2
        if self.best is None:
            which = "the model that was timed" if self.tried == 1 else f"the fastest of the {self.tried} models that were timed"
            raise SelectionError(f"{self.target} was not reached: {which} took {self.fastest}.")
        return self.best

    def _measured(self, planned: T, part: float) -> float:
        """The measured share of what was planned for a predicted part."""
        timed = self.stopwatch(planned)
        if timed.share <= self.target.fraction:
            timed = self.stopwatch(planned, confirm=True)
        self.tried += 1
        self.fastest = timed if self.fastest is None or timed.share < self.fastest.share else self.fastest
        if timed.share > self.target.fraction:
            self._high = part
            return timed.share
        self._low = part
        if self.best is None or timed.share > self.best[1].measured.share:
            self.best = planned, Forecast(self.dense_ms, self.predicted_ms(planned), timed, self.tried)
        return timed.share
