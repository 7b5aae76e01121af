"""Numbers that a run computes from the sizes of its inputs: their values in two runs at once, and the arithmetic that made them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.fx.experimental.sym_node

from secateur.errors import CaptureError

Number = int | float | bool


class DivergedError(CaptureError):
    """Two runs at different sizes are not the same calls."""


class Script(Protocol):
    """What is written while a model runs."""

    def number(self, target: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """Write a call that gives a number, unless it is written already, and return what stands for it."""

    def require(self, condition: Live) -> None:
        """Write that a decision of Python's has to fall as it did."""


# Importing torch.fx.experimental.sym_node gives torch's numbers their arithmetic, which calls the methods of this class.
class Live:
    """A number with its values ``here`` and ``there``, which answers to torch as the inside of a ``torch.SymInt``.

    Whoever asks for its value gets the one here. That decides what is called, so the decision has to be the same there, and is written
    down as one that has to be the same wherever the calls are repeated.
    """

    def __init__(self, script: Script, here: Number, there: Number, target: Callable[..., Any] | None, operands: tuple[Any, ...]) -> None:
        self.here, self.there = here, there
        self._script, self._target, self._operands = script, target, operands

    def operand(self) -> Any:
        """What stands for this number where a call takes it: a number that is the same in all runs, or what computes it."""
        if self._target is None:
            return self.here
        return self._script.number(self._target, tuple(x.operand() if isinstance(x, Live) else x for x in self._operands))

    def as_number(self) -> Any:
        """The same as torch hands it to Python."""
        kinds: dict[type, Any] = {int: torch.SymInt, float: torch.SymFloat, bool: torch.SymBool}
        return kinds[type(self.here)](self)

    def _decide(self, *_where: Any) -> Any:
        """The value here, on which what happens next may depend."""
        if self._target is None:
            return self.here
        if self.here != self.there:
            raise DivergedError(f"the model decides on {self}, which differs between sizes of its inputs")
        wanted = self if isinstance(self.here, bool) else Live(self._script, True, True, operator.eq, (self, self.wrap(self.here)))
        self._script.require(wanted if wanted.here else Live(self._script, True, True, torch.sym_not, (wanted,)))
        return self.here

    guard_int = guard_float = guard_bool = guard_size_oblivious = guard_or_false = guard_or_true = expect_true = int_ = bool_ = _decide

    def expect_size(self, *_where: Any) -> bool:
        """Sizes are no less than zero."""
        return True

    def statically_known_true(self, *_where: Any) -> bool:
        """Nothing is known of other sizes."""
        return False

    def is_int(self) -> bool:
        """Whether it is a whole number."""
        return type(self.here) is int

    def is_float(self) -> bool:
        """Whether it is a fraction."""
        return type(self.here) is float

    def is_bool(self) -> bool:
        """Whether it is a truth value."""
        return type(self.here) is bool

    def has_hint(self) -> bool:
        """Its value in one run is known."""
        return True

    def require_hint(self) -> Number:
        """Its value in one run."""
        return self.here

    def is_symbolic(self) -> bool:
        """It may be another number at other sizes."""
        return True

    def _no(self) -> bool:
        return False

    is_constant = is_nested_int = _no

    def _nothing(self) -> None:
        return None

    maybe_as_int = maybe_as_float = maybe_as_bool = constant_int = constant_bool = nested_int = _nothing

    def wrap(self, value: Number) -> Live:
        """A plain number beside this one."""
        return Live(self._script, value, value, None, ())

    wrap_int = wrap_float = wrap_bool = wrap

    def clone(self) -> Live:
        """Itself, since it never changes."""
        return self

    def __repr__(self) -> str:
        """Both values."""
        return f"{self.here} ({self.there})"

    str = _graph_repr = __repr__

    def with_others(self, target: Callable[..., Any], others: tuple[Live, ...]) -> Live:
        """What arithmetic makes of this number and others."""
        here = target(self.here, *(x.here for x in others))
        there = target(self.there, *(x.there for x in others))
        return Live(self._script, here, there, target, (self, *others))


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "mod", "floordiv", "truediv", "pow", "lshift", "rshift")},
    **{name: getattr(operator, name) for name in ("neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor")},
    **dict.fromkeys(("and", "sym_and", "bitwise_and"), operator.and_),
    **dict.fromkeys(("or", "sym_or", "bitwise_or"), operator.or_),
    **dict.fromkeys(("int_truediv", "float_truediv"), operator.truediv),
    **dict.fromkeys(("pow_by_natural", "float_pow"), operator.pow),
    **{name: getattr(torch, name) for name in ("sym_min", "sym_max", "sym_not", "sym_float", "sym_int", "sym_sqrt")},
    **{name: getattr(math, name) for name in ("floor", "ceil", "trunc")},
    "int_floordiv": operator.floordiv,
    "bitwise_xor": operator.xor,
    "round": round,
}
"""What torch calls each operation, and what computes it."""


def _method(target: Callable[..., Any]) -> Callable[..., Live]:
    return lambda self, *others: self.with_others(target, others)


for _name, _target in _ARITHMETIC.items():
    setattr(Live, _name, _method(_target))
