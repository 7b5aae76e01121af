"""Clocks of our own for single operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from secateur.measure import Machine, Operation
from secateur.measure.operation import Shaped


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
