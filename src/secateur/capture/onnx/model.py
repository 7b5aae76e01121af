"""A model read from an ONNX file: ordinary layers, run in the order of the file's nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.onnx.file import Port
from secateur.capture.onnx.names import identifiers
from secateur.capture.onnx.registry import Call, Node, find_operator
from secateur.capture.onnx.values import Known, Value
from secateur.errors import UsageError


@dataclass(frozen=True, eq=False)
class Step:
    """One node in a run: the values that it takes, the layer with its weights, and the values that no later step needs."""

    node: Node
    operands: tuple[str, ...]
    layer: str | None
    spent: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Block:
    """Steps in their order, and the values that they lead to."""

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    def __deepcopy__(self, memo: Any) -> Block:
        return self


@dataclass(frozen=True)
class FileNames:
    """What a file calls its inputs, by the names that ``forward`` has for them, and its outputs in order."""

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]

    def in_order(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        """What the file calls inputs that are given so."""
        return (*list(self.inputs.values())[: len(args)], *[self.inputs[name] for name in kwargs])


class OnnxModel(nn.Module):
    """What an ONNX file computes, with its weights in ordinary layers.

    ``forward`` takes the file's inputs by position or name and returns its output, or a tuple of them. Layers and tensors have the
    names of the model that was exported, as far as the file tells. Everything else that the nodes compute is done by plain calls.
    """

    def __init__(self, ports: Sequence[Port], outputs: Sequence[str]) -> None:
        super().__init__()
        self.ports = tuple(ports)
        self.file_names = FileNames(
            dict(zip(identifiers([port.name for port in ports], "input"), [port.name for port in ports], strict=True)), tuple(outputs)
        )
        self.bounds: dict[str, int] = {}
        """How many numbers an input of numbers may hold, by the file's name of it, where a table tells."""
        self._block = Block((), ())
        self._known: dict[str, Known] = {}
        self._leaves: dict[str, str] = {}
        self._repeats: dict[str, int] = {}

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """Run the file's nodes; a function whose parameters are the file's inputs."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.run(self.bound(*args, **kwargs))

        forward.__signature__ = self.signature  # type: ignore[attr-defined]
        return forward

    @property
    def signature(self) -> inspect.Signature:
        """What ``forward`` takes."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter(name, kind) for name in self.file_names.inputs])

    def bound(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Inputs by the names that ``forward`` has for them."""
        return dict(self.signature.bind(*args, **kwargs).arguments)

    def complete(self, block: Block, known: Mapping[str, Known], leaves: Mapping[str, str], repeats: Mapping[str, int]) -> None:
        """Say what is to be run: steps, numbers by name, the path of each stored tensor that is no layer's, and how often some repeat."""
        self._block, self._known, self._leaves, self._repeats = block, dict(known), dict(leaves), dict(repeats)

    def run(self, inputs: Mapping[str, Tensor]) -> Any:
        """The outputs for inputs by the names that ``forward`` has for them."""
        values: dict[str, Value] = {self.file_names.inputs[name]: value for name, value in inputs.items()}
        device = next((x.device for x in (*self.parameters(), *inputs.values())), torch.device("cpu"))
        found = [x.tensor(device) if isinstance(x, Known) else x for x in self._run(self._block, values, device)]
        return found[0] if len(found) == 1 else tuple(found)

    def _run(self, block: Block, values: dict[str, Value], device: torch.device) -> tuple[Value, ...]:
        for step in block.steps:
            operands = [self._value(name, values) if name else None for name in step.operands]
            layer = None if step.layer is None else self.get_submodule(step.layer)
            call = Call(step.node, operands, device, layer, lambda inner: self._run(inner, values, device))
            found = find_operator(step.node)(call)
            values.update(zip(step.node.outputs, found if isinstance(found, tuple) else (found,), strict=False))
            for name in step.spent:
                values.pop(name, None)
        return tuple(self._value(name, values) for name in block.outputs)

    def _value(self, name: str, values: Mapping[str, Value]) -> Value:
        if name in values:
            return values[name]
        if name in self._known:
            return self._known[name]
        owner, _, last = self._leaves[name].rpartition(".")
        found: Tensor = getattr(self.get_submodule(owner), last)
        return found.expand(self._repeats[name], *found.shape[1:]) if name in self._repeats else found

    def examples(self, sizes: Mapping[str, int] | None = None, *, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of the file's shapes, its named sizes as given.

        Raises :class:`UsageError` for sizes that neither the file nor ``sizes`` tells.
        """
        from secateur.capture.onnx.check import random_inputs

        lacking = [str(port) for port in self.ports if any(not isinstance(n, int) and n not in (sizes or {}) for n in port.shape)]
        if lacking:
            raise UsageError(f"The file leaves sizes open: {'; '.join(lacking)}. Give inputs of the sizes that you mean.")
        return random_inputs(self.ports, self.bounds, lambda name, _place: dict(sizes or {})[str(name)], seed)
