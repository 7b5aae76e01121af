"""One call of an operator without its values: what it is timed by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from secateur.capture.capture import Fact
from secateur.measure.macs import is_view


@dataclass(frozen=True)
class Shaped:
    """A tensor without values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: bool = field(default=False, compare=False)
    """Whether it is a weight, or another tensor that a model holds."""

    def tensor(self, device: torch.device) -> Tensor:
        """A tensor of this shape that any operator takes: between 0 and 1, index 0, or true."""
        if self.dtype.is_floating_point or self.dtype.is_complex:
            return torch.rand(self.shape, dtype=self.dtype, device=device)
        return torch.full(self.shape, self.dtype == torch.bool, dtype=self.dtype, device=device)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Operation:
    """An operator with the shapes of its tensors and its other arguments.

    Sizes, and whole numbers among the arguments such as the groups of a convolution, are its ``numbers``: with others in their place it is
    the same call in a narrower model.
    """

    target: torch._ops.OpOverload
    leaves: tuple[Any, ...]
    """The flattened arguments, tensors as :class:`Shaped`."""
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, node: fx.Node) -> Operation | None:
        """The operation of a node, if it computes: nothing for views, for what is no operator, and for what takes no tensor."""
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or is_view(node.target):
            return None
        leaves, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
        shaped = tuple(_shaped(leaf) for leaf in leaves)
        return cls(node.target, shaped, spec) if any(isinstance(leaf, Shaped) for leaf in shaped) else None

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """All sizes and whole numbers, in order."""
        return tuple(number for leaf in self.leaves for number in _numbers(leaf))

    def with_numbers(self, numbers: tuple[int, ...]) -> Operation:
        """The same call with other sizes."""
        rest = iter(numbers)
        return Operation(self.target, tuple(_renumbered(leaf, rest) for leaf in self.leaves), self.spec)

    @cached_property
    def key(self) -> str:
        """The call as text, the same for all calls that take equally long."""
        args, kwargs = pytree.tree_unflatten([_Plain(str(leaf)) for leaf in self.leaves], self.spec)
        named = [f"{name}={value!r}" for name, value in sorted(kwargs.items())]
        return f"{self.target}({', '.join([*map(repr, args), *named])})"

    @cached_property
    def kind(self) -> str:
        """The call as text without its sizes."""
        return self.with_numbers((0,) * len(self.numbers)).key

    def arguments(self, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments to call the operator with."""
        leaves = [leaf.tensor(device) if isinstance(leaf, Shaped) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return tuple(args), dict(kwargs)


class _Plain(str):
    """Text that is shown without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _shaped(leaf: Any) -> Any:
    fact = leaf.meta.get("fact") if isinstance(leaf, fx.Node) else leaf
    stored = isinstance(leaf, fx.Node) and leaf.op == "get_attr"
    return Shaped(tuple(fact.shape), fact.dtype, stored) if isinstance(fact, Fact) else fact


def _numbers(leaf: Any) -> tuple[int, ...]:
    if isinstance(leaf, Shaped):
        return leaf.shape
    return (leaf,) if _is_number(leaf) else ()


def _renumbered(leaf: Any, rest: Iterator[int]) -> Any:
    if isinstance(leaf, Shaped):
        return replace(leaf, shape=tuple(next(rest) for _ in leaf.shape))
    return next(rest) if _is_number(leaf) else leaf


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, int) and not isinstance(leaf, bool)
