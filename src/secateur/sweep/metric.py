"""What a model is worth: a number of the user's, or how near it is to the dense one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import UsageError
from secateur.measure import compare_outputs
from secateur.measure.evaluation import evaluating

Evaluate = Callable[[nn.Module], float]
"""A model in evaluation mode to a number; higher is better."""


@dataclass(frozen=True, eq=False)
class FidelityTo:
    """One minus the relative error of the outputs (:class:`~secateur.measure.Fidelity`): 1 where they equal the dense model's."""

    dense: nn.Module
    batches: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    """Inputs as ``(args, kwargs)``."""
    name = "fidelity"

    def __call__(self, model: nn.Module) -> float:
        """Compare a model with the dense one."""
        with evaluating([self.dense, model]):
            found = compare_outputs(_with_inputs(self.dense), _with_inputs(model), self.batches)
        return 1 - found.relative_l2


def _with_inputs(model: nn.Module) -> Callable[..., Any]:
    return lambda args, kwargs: model(*args, **kwargs)


def metric_name(evaluate: Evaluate) -> str:
    """What a metric calls itself."""
    return str(getattr(evaluate, "name", None) or getattr(evaluate, "__name__", "metric"))


def measured_by(evaluate: Evaluate, model: nn.Module) -> float:
    """The metric of a model in evaluation mode, which is its own mode again afterwards."""
    with evaluating([model]):
        value = evaluate(model)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{metric_name(evaluate)} returned {type(value).__name__}; a metric returns one number.") from error
