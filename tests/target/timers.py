"""Clocks of our own for single operators and for models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from secateur.measure import Latency, LayerTimes, Machine, Operation
from secateur.measure.operation import Shaped
from secateur.target import Stopwatch


@dataclass
class Elements:
    """Operators take a millisecond for a thousand elements of their tensors; those that do not run at all are noted."""

    machine: Machine = field(default_factory=lambda: Machine("made up", "none", 1))
    failed: list[str] = field(default_factory=list)
    runs: bool = False
    """Whether to call the operators, too."""

    def __call__(self, operation: Operation) -> float | None:
        if self.runs and not self._runs(operation):
            self.failed.append(operation.key)
            return None
        return 1e-3 * elements(operation)

    def _runs(self, operation: Operation) -> bool:
        args, kwargs = operation.arguments(torch.device("cpu"))
        try:
            operation.target(*args, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError):
            return False
        return True


def elements(operation: Operation) -> int:
    """Elements of all tensors that an operation takes."""
    return sum(math.prod(leaf.shape) for leaf in operation.leaves if isinstance(leaf, Shaped))


class Stairs:
    """Models take as long as their parameters say, rounded up to a step; a longer run may find something else."""

    def __init__(self, step: float = 0.1, truth: Callable[[float], float] = lambda share: share) -> None:
        self.step, self.truth = step, truth
        self.runs: list[tuple[int, float]] = []
        self.truth_always = False

    def __call__(self, models: Mapping[str, nn.Module], args: Any, kwargs: Any, *, repeats: int, **_: Any) -> dict[str, Latency]:
        sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
        share = -(-sizes["compressed"] / sizes["dense"] // self.step) * self.step
        share = self.truth(share) if repeats > 15 or self.truth_always else share
        self.runs.append((repeats, share))
        return {name: latency(10 * each) for name, each in {"dense": 1.0, "compressed": share}.items()}


def latency(median: float) -> Latency:
    return Latency(median, median, median, median, 3, 1, "torch", "cpu", 1, 1, "float32")


def on_own_clocks(monkeypatch: pytest.MonkeyPatch, stairs: Stairs) -> Stairs:
    """Let operators of studies take as long as they have elements, and models as long as such stairs say."""
    monkeypatch.setattr(Stopwatch, "of", lambda runtime: Stopwatch(compare=stairs))
    monkeypatch.setattr(import_module("secateur.study.study"), "LayerTimes", lambda timer: LayerTimes(Elements(), folder=None))
    return stairs
