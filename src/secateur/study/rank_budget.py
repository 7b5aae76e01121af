"""Choose the ranks of all layers together, so that what remains fits a target at the least error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from secateur.decompose import Decomposable, Refusal, allocate_ranks
from secateur.decompose.ranks import Measure
from secateur.errors import SelectionError
from secateur.study.coherence import coherent_curves
from secateur.study.curves import Curve, Seen, curve_of
from secateur.study.wish import Decompose, Found
from secateur.target import Target

WRONG = 0.1
"""A layer that loses more of its outputs than this at half of its cost is none for factors."""


@dataclass(frozen=True)
class Budget:
    """What the model as it is takes, and what of that may remain."""

    target: Target
    of: Measure
    total: int
    allowed: float
    unit: int = 1
    """The bytes of one, where bytes are counted."""

    def units(self, layer: nn.Module) -> int:
        """What one element of a layer's weight takes."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight.itemsize // self.unit if self.target.quantity == "bytes" else 1

    @classmethod
    def of_target(cls, target: Target, within: Target, taken: int, unit: int) -> Budget:
        """The budget of a target for the dense model, where ``within`` is the same for the model as it is.

        Args:
            taken: what the model as it is takes of the target's quantity.
            unit: in what it is counted; of bytes, those of the narrowest element of a factor.
        """
        return cls(target, "macs" if target.macs is not None else "params", -(-taken // unit), within.fraction * taken / unit, unit)


def within_budget(
    model: nn.Module, rows: Sequence[Decomposable], wish: Decompose, budget: Budget, seen: Seen
) -> tuple[dict[str, Found], tuple[str, ...]]:
    """Choose all ranks together; a layer whose share of the budget is best left as it is gets none."""
    found: dict[str, Found] = {row.name: Refusal(row.reason or "") for row in rows if not row.methods}
    curves: dict[str, Curve] = {}
    for row in rows:
        if row.methods:
            curve = curve_of(model, row, wish, budget.of, seen, units=budget.units(model.get_submodule(row.name)))
            if isinstance(curve, Refusal):
                found[row.name] = curve
            else:
                curves[row.name] = curve
    curves = coherent_curves(model, {row.name: row for row in rows}, curves, seen)
    errors = {name: curve.errors for name, curve in curves.items()}
    fixed = budget.total - sum(curve.dense_cost for curve in errors.values())
    least = fixed + sum(int(curve.costs.min()) for curve in errors.values())
    if not curves or least > budget.allowed:
        raise SelectionError(f"{budget.target} cannot be reached: with all at rank 1, {least / budget.total:.1%} remain.")
    chosen = allocate_ranks(errors, int(budget.allowed - fixed))
    for name, place in chosen.points.items():
        point = curves[name].points[place]
        found[name] = Refusal("the budget is best spent on it as it is") if point is None else wish.edit(name, *point)
    dense = budget.target.fraction * budget.total / budget.allowed
    note = f"target {budget.target.fraction:.1%}, predicted {(chosen.cost + fixed) / budget.total * dense:.1%}"
    return {row.name: found[row.name] for row in rows}, (note, *seen.notes, *wrong_tool(curves))


def wrong_tool(curves: Mapping[str, Curve]) -> tuple[str, ...]:
    """A note on the layers for which factors are the wrong tool."""
    lost = {name: curve.at_half for name, curve in curves.items() if curve.at_half > WRONG}
    told = ", ".join(f"{name} ({part:.0%})" for name, part in sorted(lost.items(), key=lambda each: -each[1]))
    return (f"factors are the wrong tool for layers that lose more than {WRONG:.0%} at half of their cost: {told}",) if lost else ()
