"""Run a captured graph in double precision, with stored tensors replaced by others of the caller's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from secateur.rewrite.doubles import IN_DOUBLE

_WIDER = {torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64, torch.complex64: torch.complex128}


def widened(value: Any) -> Any:
    """A tensor or dtype in double precision; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(_WIDER.get(value.dtype, value.dtype))
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    return value


@contextmanager
def double_by_default() -> Iterator[None]:
    """Tensors made without a dtype are of double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Double(fx.Interpreter):
    """Runs a flat graph in double precision; ``leaves`` replaces stored tensors by name."""

    def __init__(self, program: fx.GraphModule, leaves: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(program)
        self.extra_traceback = False
        self.leaves = dict(leaves or {})

    def outputs(self, flat_inputs: Sequence[Any], *, seed: int = 0) -> tuple[Any, ...]:
        """The graph's outputs; random operators draw from a generator of this seed."""
        with torch.no_grad(), double_by_default(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = self.run(*[widened(x) for x in flat_inputs])
            return tuple(found) if isinstance(found, tuple | list) else (found,)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The replacement of a stored tensor, or the tensor itself."""
        if target in self.leaves:
            return widened(self.leaves[target])
        return widened(super().get_attr(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call with every dtype argument widened."""
        return super().call_function(
            IN_DOUBLE.get(target, target), fx.node.map_aggregate(args, widened), fx.node.map_aggregate(kwargs, widened)
        )
