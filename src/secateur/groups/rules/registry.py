"""The table of rules, and what a rule is given: one call of an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.groups.fields import Fields
from secateur.groups.ledger import Ledger
from secateur.groups.meeting import Shaped

Outcome = Fields | list[Fields]
"""Fields of the one output, or of each of several."""


@dataclass(frozen=True)
class Operand(Shaped):
    """A tensor as a rule sees it."""

    value: Tensor | None = None
    """Its value, where it depends on constants alone."""
    leaf: str | None = None
    """The parameter or buffer that it is."""
    parametric: bool = False
    """Whether no input of the model has a say in it."""


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by name, its outputs' shapes, and the ledger to write to."""

    node: fx.Node
    ledger: Ledger
    args: dict[str, Any]
    shapes: list[tuple[int, ...]]
    """Shape of each output."""

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    def operands(self) -> list[Operand]:
        """All tensors among the arguments, also those in lists."""
        found: list[Operand] = []
        for value in self.args.values():
            found += [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Operand)]
        return found

    def dims(self, value: int | Sequence[int] | None, rank: int) -> frozenset[int]:
        """Dimensions as non-negative numbers; none given means all."""
        if value is None or (not isinstance(value, int) and len(value) == 0):
            return frozenset(range(rank))
        return frozenset(d % max(rank, 1) for d in ([value] if isinstance(value, int) else value))

    def refuse(self, text: str) -> Outcome:
        """Keep everything that enters whole, and return outputs without labels."""
        for operand in self.operands():
            self.ledger.freeze_fields(operand.fields, text)
        return [() for _ in self.shapes] if len(self.shapes) > 1 else ()


Rule = Callable[[Call], Outcome]
_RULES: dict[str, Rule] = {}
_TAKE_PLIANT: set[Rule] = set()


def rule(*names: str, pliant: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named as in ``aten.conv2d.default`` or, for all overloads, ``aten.conv2d``.

    A rule that can do with pliant fields says so; to any other they are not shown, and stay.
    A second registration of a name raises ``ValueError``.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"{name} has a rule already: {_RULES[name].__module__}.{_RULES[name].__name__}")
            _RULES[name] = function
        if pliant:
            _TAKE_PLIANT.add(function)
        return function

    return register


def takes_pliant(function: Rule | None) -> bool:
    """Whether a rule can do with pliant fields."""
    return function in _TAKE_PLIANT


def find(target: Any) -> Rule | None:
    """The rule of an operator: that of its overload, else of its packet, else the one for elementwise operators."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    own = _RULES.get(str(target)) or _RULES.get(str(target.overloadpacket))
    if own is None and torch.Tag.pointwise in target.tags:
        return _RULES["pointwise"]
    return own
