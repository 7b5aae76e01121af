"""One plan carried out: an independent piece of work, in this process or in another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.measure import Latency, compare_latency, measure, slower_than_dense
from secateur.pipeline import apply, recovered
from secateur.plan import Plan
from secateur.recover import Recovery
from secateur.rewrite.apply import Prefer
from secateur.score.batches import Data
from secateur.study import Study, calibration, study
from secateur.sweep.metric import Evaluate, FidelityTo, measured_by


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """What came of one plan."""

    plan: Plan
    macs: int
    parameters: int
    metric: float
    """Of the recovered model; higher is better."""
    proof_error: float
    """Of the proof that the cut model equals the masked dense one, before it was recovered."""
    latency: Mapping[str, Latency] = field(default_factory=dict)
    """``dense`` and ``compressed``, timed in turns, where that was asked for."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dense:
    """The dense model's size and metric."""

    macs: int
    parameters: int
    metric: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Trials:
    """What all plans of a sweep have in common; called with one, it cuts, proves, recovers and measures.

    It may be sent to another process, which studies the model anew.
    """

    found: Study
    data: Sequence[Any] | None
    recover: Recovery
    evaluate: Evaluate
    prefer: Prefer = "auto"
    latency: bool = False

    @classmethod
    def of(cls, found: Study, data: Data | None, evaluate: Evaluate | None, samples: int | None, **settings: Any) -> Trials:
        """Read calibration data once; without a metric models are compared with the dense one on them, or on the example inputs."""
        held = calibration(found.capture, data, samples)
        batches = None if held is None else held.batches
        compared = FidelityTo(found.model, batches or [(found.capture.args, found.capture.kwargs)])
        return cls(found=found, data=batches, evaluate=evaluate or compared, **settings)

    def __call__(self, plan: Plan) -> Trial | str:
        """What came of a plan, or why it cannot be carried out."""
        try:
            cut = apply(self.found, plan, prefer=self.prefer)
            result = recovered(cut, self.found, self.recover, self.data)
        except SecateurError as error:
            return str(error)
        pair = {"dense": self.found.model, "compressed": result.model}
        latency = compare_latency(pair, result.args, result.kwargs) if self.latency else {}
        return Trial(
            plan=result.plan,
            macs=result.after.macs,
            parameters=result.after.parameters,
            metric=measured_by(self.evaluate, result.model),
            proof_error=result.proof.error,
            latency=latency,
            notes=(*result.notes, *(slower_than_dense(latency) if latency else ())),
        )

    def dense(self) -> Dense:
        """The dense model."""
        size = measure(self.found.capture)
        return Dense(size.macs, size.parameters, measured_by(self.evaluate, self.found.model))

    @property
    def accelerated(self) -> bool:
        """Whether the model is on an accelerator."""
        return any(tensor.device != torch.device("cpu") for tensor in self.found.model.parameters())

    def __reduce__(self) -> tuple[Callable[..., Trials], tuple[Any, ...]]:
        """A study holds what no pickle takes, so the model goes, and is studied where it arrives."""
        inputs = self.found.capture.args, dict(self.found.capture.kwargs)
        return _again, (self.found.model, inputs, {name: value for name, value in vars(self).items() if name != "found"})


def _again(model: nn.Module, inputs: Any, rest: Mapping[str, Any]) -> Trials:
    return Trials(found=study(model, inputs), **rest)
