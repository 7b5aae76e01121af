"""What a run of fine-tuning tells of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from secateur.result import Result


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data."""

    number: int
    """Counts from 1."""
    loss: float
    """Mean over the batches of the epoch, while the weights changed."""
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    """The same before weights, with a teacher: ``labels``, ``logits``, ``features``."""
    rate: float = 0.0
    """The learning rate of the last step."""
    metric: float | None = None
    """Taken behind the epoch, where one was given."""


@dataclass(frozen=True)
class Record:
    """A run of fine-tuning."""

    settings: str
    epochs: tuple[Epoch, ...] = ()
    metric_before: float | None = None
    """Of the compressed model as it was given."""
    best_epoch: int | None = None
    """The epoch whose weights are returned, 0 for those that were given; ``None`` without a metric: the last ones are returned."""
    steps: int = 0
    """Steps of the optimizer."""
    stopped_early: bool = False
    processes: int = 1
    distilled: bool = False
    features: tuple[str, ...] = ()
    """The modules whose outputs were compared with the teacher's."""

    @property
    def metric_after(self) -> float | None:
        """The metric of the weights that are returned."""
        if self.best_epoch is None:
            return None
        return self.metric_before if self.best_epoch == 0 else self.epochs[self.best_epoch - 1].metric

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of it."""
        taught = " with the dense model as teacher" if self.distilled else ""
        told = f"fine-tuned after the proof{taught}: {len(self.epochs)} epochs, {self.steps} steps"
        early = ", stopped early" if self.stopped_early else ""
        if self.best_epoch == 0:
            return (f"{told}{early}; no epoch was better than the weights that were given, which stay",)
        kept = "" if self.best_epoch is None else f", weights of epoch {self.best_epoch}"
        return (f"{told}{kept}{early}; new values in all trained tensors, the structure as proven",)

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; what is not finite becomes text."""
        content: dict[str, Any] = _plain(asdict(self) | {"metric_after": self.metric_after})
        return content


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained model with the record of its training."""

    model: nn.Module
    """A copy of the compressed model with trained weights, of the same class, where the given one was."""
    record: Record

    def into(self, result: Result, *, metric: str = "metric") -> Result:
        """The result that was tuned, with the trained model, the metric before and after it, and a note."""
        taken = {"before": self.record.metric_before, "after": self.record.metric_after}
        figures = {f"{metric} {when} fine-tuning": value for when, value in taken.items() if value is not None}
        return replace(
            result,
            model=self.model,
            metrics={**result.metrics, **figures},
            notes=(*result.notes, *self.record.notes),
            recovered=(*result.recovered, "training"),
            fidelity=None,
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
