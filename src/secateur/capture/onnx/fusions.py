"""Operators that exporters write as several nodes, because older opsets lack them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Surroundings:
    """What is known of a node's neighbours."""

    maker: Callable[[str], Any]
    """The node that makes a value, or ``None``."""
    reader: Callable[[Any], Any]
    """The only node that reads a node's output, or ``None``."""
    constant: Callable[[str], Tensor | None]
    """The value of a name, if it is a constant."""


@dataclass(frozen=True, eq=False)
class GroupNorm:
    """A group norm around an instance norm: what it reads, its settings, and the nodes behind that are part of it."""

    source: str
    groups: int
    weight: Tensor
    bias: Tensor
    behind: tuple[Any, ...]

    @property
    def output(self) -> str:
        """The value that the last node makes."""
        name: str = self.behind[-1].output[0]
        return name


def group_norm(node: Any, around: Surroundings) -> GroupNorm | None:
    """The group norm that an instance norm is the core of, if it is one.

    Exporters reshape to ``(samples, groups, rest)``, normalise without weights, reshape back, and scale and shift each channel.
    """
    scale, shift = (around.constant(name) for name in node.input[1:3])
    before = around.maker(node.input[0])
    if before is None or before.op_type != "Reshape" or scale is None or shift is None or bool((scale != 1).any() | (shift != 0).any()):
        return None
    rows = around.constant(before.input[1])
    behind = _followed(node, ("Reshape", "Mul", "Add"), around)
    if behind is None or rows is None or rows.tolist()[1:] != [scale.numel(), -1]:
        return None
    weight, bias = (_by_channel(each, around) for each in behind[1:])
    if weight is None or bias is None or weight.shape != bias.shape or not _goes_back(behind[0], before, weight.numel(), around):
        return None
    return GroupNorm(before.input[0], scale.numel(), weight, bias, behind)


def _followed(node: Any, kinds: tuple[str, ...], around: Surroundings) -> tuple[Any, ...] | None:
    """The nodes behind a node, each the only reader of the one before it, if they are of these kinds."""
    found = []
    for kind in kinds:
        node = around.reader(node)
        if node is None or node.op_type != kind:
            return None
        found.append(node)
    return tuple(found)


def _by_channel(node: Any, around: Surroundings) -> Tensor | None:
    """The constant operand of a node as a vector, if it has one number for each channel."""
    found = next((x for x in map(around.constant, node.input) if x is not None), None)
    if found is None or found.dim() < 3 or found.shape[-2:].numel() != 1 or found.numel() != found.shape[found.dim() - 3]:
        return None
    return found.reshape(-1)


def _goes_back(back: Any, there: Any, channels: int, around: Surroundings) -> bool:
    """Whether a reshape gives the shape from before another one."""
    sizes = around.constant(back.input[1])
    if sizes is not None:
        return sizes.numel() == 4 and int(sizes[1]) == channels
    maker = around.maker(back.input[1])
    return maker is not None and maker.op_type == "Shape" and maker.input[0] == there.input[0]
