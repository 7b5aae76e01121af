"""Record a model while it really runs on inputs of two sizes at once, so that what differs stays open in the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from secateur.capture.capture import Capture
from secateur.capture.execution import plain_execution
from secateur.capture.flat import flatten_inputs
from secateur.capture.leaves import Leaves
from secateur.capture.live import DivergedError, Live
from secateur.capture.modes import before_dispatch
from secateur.capture.modules import ModulePath, module_path
from secateur.capture.record import can_record
from secateur.capture.tape import Tape
from secateur.capture.trees import copied, flatten_outputs, input_names
from secateur.capture.twins import Twin
from secateur.capture.untouched import Keepsakes, untouched
from secateur.capture.values import depends_on_values
from secateur.capture.verify import close_capture
from secateur.capture.writes import written
from secateur.errors import CaptureError

REFUSAL = "this graph does not hold for inputs of these sizes, at which the model refuses them or makes other calls"

aten = torch.ops.aten

_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def record_twice(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], others: Sequence[Any]) -> Capture:
    """Capture one forward of the model on the inputs and on ``others``, flat and of other sizes, which has to make the same calls.

    Numbers that the model computes from sizes are computed in the graph too; where Python decided on one, the graph checks that it
    would decide so again, and refuses sizes at which it would not. Sizes that are the same in both runs count as constants.

    Raises :class:`DivergedError` where the two runs part, :class:`CaptureError` where they cannot be followed.
    """
    if not can_record():
        raise CaptureError("torch shows no calls before dispatch")
    flat, in_spec = flatten_inputs(args, kwargs)
    leaves = Leaves.of(model)
    with untouched(model, flat) as keepsakes, module_path(model) as path, plain_execution(model, flat):
        tape = _TwinTape(leaves, path, keepsakes)
        pairs = [tape.twin(a, b) if isinstance(a, Tensor) else a for a, b in zip(copied(flat), copied(others), strict=True)]
        for name, leaf in zip(input_names(args, dict(kwargs)), pairs, strict=True):
            tape.placeholder(name, leaf)
        for leaf in pairs:
            if isinstance(leaf, Twin):
                tape.hold(leaf)
        run_args, run_kwargs = pytree.tree_unflatten(pairs, in_spec)
        with before_dispatch(tape):
            outputs = model(*run_args, **run_kwargs)
        out_leaves, out_spec = flatten_outputs(outputs)
        program = tape.finish(model, out_leaves)
        expected = copied(_side(out_leaves, "here"))
    tied = {**leaves.tied, **{name: (name,) for name in tape.constants}}
    found = Capture(program, model, args, kwargs, in_spec, out_spec, "record", tied, dynamic=True, elsewhere=others)
    found = close_capture(found, expected)
    return replace(found, decided=depends_on_values(found.graph))


def _side(value: Any, side: str) -> Any:
    """The values of one of the two runs in place of twins and live numbers."""

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, Twin):
            return getattr(leaf, side)
        return getattr(leaf.node, side) if isinstance(leaf, _SYMBOLS) else leaf

    return pytree.tree_map(pick, value)


class _TwinTape(Tape):
    """A tape of calls that are carried out twice."""

    def __init__(self, leaves: Leaves, path: ModulePath, keepsakes: Keepsakes) -> None:
        super().__init__(leaves, path, keepsakes)
        self._numbers: dict[tuple[Callable[..., Any], tuple[Any, ...]], fx.Node] = {}
        self._required: set[fx.Node] = set()

    def twin(self, here: Tensor, there: Tensor) -> Twin:
        """A tensor of both runs."""
        return Twin(here, there, self)

    def number(self, target: Callable[..., Any], operands: tuple[Any, ...]) -> fx.Node:
        """The node of a number that is computed from sizes."""
        args = tuple(self._operand(each) if isinstance(each, Tensor) else each for each in operands)
        if (target, args) not in self._numbers:
            self._numbers[target, args] = self._placed(self.graph.call_function(target, args))
        return self._numbers[target, args]

    def require(self, condition: Live) -> None:
        """Let the graph refuse sizes at which this does not hold."""
        node = condition.operand()
        always = node.target is operator.eq and node.args[0] is node.args[1]
        if node not in self._required and not always:
            self._required.add(node)
            self._placed(self.graph.call_function(torch._assert, (node, REFUSAL)))

    def hold(self, twin: Twin) -> None:
        """Let the graph refuse other sizes of a tensor where it has the same in both runs."""
        for dim, (here, there) in enumerate(zip(twin.here.shape, twin.there.shape, strict=True)):
            if here == there:
                size = Live(self, here, here, aten.sym_size.int, (twin, dim))
                self.require(Live(self, True, True, operator.eq, (size, size.wrap(here))))

    def run(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Carry out a call in both runs."""
        operands = written(target, args, kwargs)
        if any(not isinstance(each, Twin) or self._leaves.sharing(each.here) for each in operands):
            raise CaptureError("the model writes to a tensor of its own")
        here, there = (target(*_side(args, side), **_side(kwargs, side)) for side in ("here", "there"))
        return pytree.tree_map(self._joined, here, there)

    def _joined(self, here: Any, there: Any) -> Any:
        if isinstance(here, Tensor):
            return self.twin(here, there)
        if here != there:
            raise DivergedError(f"a call gives {here} at one size of the inputs and {there} at another")
        return here

    def _operand(self, value: Any) -> Any:
        number = getattr(value, "node", None) if isinstance(value, _SYMBOLS) else None
        return number.operand() if isinstance(number, Live) else super()._operand(value)
