"""The table of ONNX operators, and what a function in it is given: one node with its operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.onnx.values import Known, Parts, Value, integers
from secateur.errors import CaptureError


@dataclass(frozen=True, eq=False)
class Node:
    """One node of a file's graph, its attributes as Python values and its subgraphs as blocks."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    """Names of the operands, empty for those left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or what the standard takes if it is left out."""
        return self.attributes.get(name, default)

    def refuse(self, why: str) -> CaptureError:
        """The error for a node that cannot be carried out in PyTorch."""
        return CaptureError(f"{self.operator} (node {self.name!r}, opset {self.opset}): {why}.")


@dataclass(frozen=True, eq=False)
class Call:
    """One run of a node: its operands, and the layer that holds its weights where they are constants."""

    node: Node
    operands: Sequence[Value | None]
    device: torch.device
    layer: nn.Module | None = None
    run: Callable[[Any], tuple[Value, ...]] | None = None
    """Carries out a block of nodes inside of this one."""

    def has(self, place: int) -> bool:
        """Whether the operand at a place is given."""
        return place < len(self.operands) and self.operands[place] is not None

    def __getitem__(self, place: int) -> Value:
        value = self.operands[place] if place < len(self.operands) else None
        if value is None:
            raise self.node.refuse(f"operand {place} is missing")
        return value

    def tensor(self, place: int) -> Tensor:
        """An operand as a tensor."""
        value = self[place]
        if isinstance(value, Parts):
            raise self.node.refuse(f"operand {place} is a sequence")
        return value.tensor(self.device) if isinstance(value, Known) else value

    def optional(self, place: int) -> Tensor | None:
        """An operand as a tensor, if it is given."""
        return self.tensor(place) if self.has(place) else None

    def numbers(self, place: int) -> list[Any]:
        """An operand as flat numbers; one that depends on the inputs is looked at, which ties the run to these inputs."""
        value = self[place]
        if isinstance(value, Known):
            return value.numbers()
        listed: list[Any] = self.tensor(place).reshape(-1).tolist()
        return listed

    def integers(self, place: int) -> list[Any]:
        """An operand as whole numbers."""
        return integers(self.numbers(place))

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attribute(name, default)

    def axes(self, place: int, since: int) -> list[int] | None:
        """Axes, which are an attribute in older opsets and an operand ``since`` a newer one."""
        if self.node.opset < since:
            found = self.attribute("axes")
            return None if found is None else list(found)
        return self.integers(place) if self.has(place) else None

    def all_known(self) -> bool:
        """Whether all operands are numbers."""
        return all(isinstance(value, Known) for value in self.operands if value is not None)


Operator = Callable[[Call], Value | tuple[Value, ...]]
Weights = Sequence[Tensor | None]
MakeLayer = Callable[[Node, Weights], nn.Module | None]


@dataclass(frozen=True)
class LayerOf:
    """How an operator becomes a layer: which operands are its weights, and what makes a layer of them."""

    places: tuple[int, ...]
    make: MakeLayer


_OPERATORS: dict[str, Operator] = {}
_LAYERS: dict[str, LayerOf] = {}
_NUMBERS: dict[str, tuple[int, ...]] = {}


def operator(*names: str, numbers: tuple[int, ...] = ()) -> Callable[[Operator], Operator]:
    """Register the function that carries out ONNX operators; a second registration of a name raises ``ValueError``.

    Constant operands at the places ``numbers`` are settings, and come as numbers even if they look like weights.
    """

    def register(function: Operator) -> Operator:
        for name in names:
            if name in _OPERATORS:
                raise ValueError(f"{name} is registered already: {_OPERATORS[name].__module__}.{_OPERATORS[name].__name__}")
            _OPERATORS[name] = function
            _NUMBERS[name] = numbers
        return function

    return register


def layer(*names: str, places: tuple[int, ...]) -> Callable[[MakeLayer], MakeLayer]:
    """Register the function that makes a layer of a node's weights, which are its operands at ``places``.

    It is called where all of those that are given are constants, with ``None`` for those left out, and returns ``None`` where no
    layer computes what the node does.
    """

    def register(function: MakeLayer) -> MakeLayer:
        for name in names:
            if name in _LAYERS:
                raise ValueError(f"{name} has a layer already: {_LAYERS[name].make.__module__}.{_LAYERS[name].make.__name__}")
            _LAYERS[name] = LayerOf(places, function)
        return function

    return register


def find_operator(node: Node) -> Operator:
    """The function for a node; :class:`CaptureError` if there is none."""
    if node.operator not in _OPERATORS:
        raise node.refuse("this operator cannot be read; export the model without it, or add it with @operator")
    return _OPERATORS[node.operator]


def find_layer(name: str) -> LayerOf | None:
    """How an operator becomes a layer, if it can."""
    return _LAYERS.get(name)


def number_places(name: str) -> tuple[int, ...]:
    """Which operands of an operator are settings."""
    return _NUMBERS.get(name, ())


def operators() -> list[str]:
    """Names of all operators that can be read."""
    return sorted(_OPERATORS)
