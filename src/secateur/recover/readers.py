"""Layers of a graph whose weights can be fitted to what comes in and what should come out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from secateur.capture.calls import arguments, leaf, packet
from secateur.capture.capture import Fact

CHUNK = 1 << 22
"""Elements of input rows that are laid out at once; bounds memory, changes nothing else."""

FEW_POSITIONS = 8
"""Of positions that are fewer than one in so many, each is gathered by itself."""

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")
_PRODUCTS = ("aten.mm", "aten.matmul")
Offset = Literal["bias", "running_mean"]


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its inputs."""

    extent: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def taps(self) -> int:
        """Positions under the kernel."""
        return math.prod(self.extent)


@dataclass(frozen=True)
class Reader:
    """One call that multiplies activations by a stored weight, and where a shift of its outputs can go."""

    node: fx.Node
    source: fx.Node
    weight: str
    offset: tuple[Offset, str] | None
    """The bias, or the running mean of a batch norm right behind (which takes a shift with the sign turned)."""
    geometry: Geometry | None = None
    transposed: bool = False
    """Whether the stored matrix is ``(in, out)``."""

    @property
    def groups(self) -> int:
        """Groups of channels that do not see each other."""
        return self.geometry.groups if self.geometry else 1

    @property
    def taps(self) -> int:
        """Positions of the input that one output sees, for each channel."""
        return self.geometry.taps if self.geometry else 1

    @property
    def channel_dim(self) -> int:
        """The dimension of inputs and outputs along which channels lie."""
        return -1 if self.geometry is None else -1 - len(self.geometry.extent)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``(groups, out, taps * in)``."""
        rows = weight.T if self.transposed else weight.movedim(1, -1)
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def stored(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The matrix in the form of the stored weight."""
        rows = matrix[0].T if self.transposed else matrix.reshape(like.movedim(1, -1).shape).movedim(-1, 1)
        return rows.to(like)

    def rows(
        self, inputs: Tensor, outputs: Sequence[Tensor], positions: int | None = None, seed: int = 0
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Inputs ``(groups, n, taps * in)`` and what belongs to them of each of the outputs ``(groups, n, out)``, some samples at a time.

        Only so many ``positions`` of each sample, drawn at random, the same for the same seed; all if ``None``.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.geometry is None:
            yield _points(inputs, outputs, positions, generator)
            return
        inputs, outputs = self._batched(inputs), [self._batched(y) for y in outputs]
        sizes = outputs[0].shape[2:]
        taken = min(positions or math.inf, math.prod(sizes))
        step = max(1, CHUNK // max(1, int(taken) * inputs.shape[1] * self.taps))
        for x, *ys in zip(*(torch.split(v, step) for v in (inputs, *outputs)), strict=True):
            at = _drawn(math.prod(sizes), int(taken), generator, x.device)
            yield _patches(x, self.geometry, sizes, at), [_positions(y, self.groups, at) for y in ys]

    def points(self, inputs: Tensor, outputs: Tensor, positions: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The channels of two tensors of one layout as rows, ``(1, n, channels)``: those of so many positions of each sample."""
        generator = torch.Generator().manual_seed(seed)
        if self.geometry is None:
            x, (y,) = _points(inputs, [outputs], positions, generator)
            return x, y
        first, second = self._batched(inputs), self._batched(outputs)
        at = _drawn(math.prod(first.shape[2:]), positions, generator, first.device)
        return _positions(first, 1, at), _positions(second, 1, at)

    def _batched(self, values: Tensor) -> Tensor:
        assert self.geometry is not None
        return values.unsqueeze(0) if values.ndim == len(self.geometry.extent) + 1 else values


def readers(graph: fx.Graph) -> tuple[dict[str, Reader], dict[str, str]]:
    """All calls whose weight can be fitted, by weight, in the order of the graph; and why others with a weight cannot."""
    uses = _uses(graph)
    found: dict[str, Reader] = {}
    refused: dict[str, str] = {}
    for node in graph.nodes:
        given = arguments(node)
        weight, _ = _stored(given.get("weight") or given.get("mat2") or given.get("other"))
        if weight is None or not _multiplies(node):
            continue
        reader = _reader(node, given, uses)
        if uses[weight] > 1:
            refused[weight] = f"its weight is used {uses[weight]} times"
        elif isinstance(reader, str):
            refused[weight] = reader
        else:
            found[weight] = reader
    return found, refused


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor, in the dense graph if the node is a copy."""
    fact: Any = node.meta.get("origin", node).meta["fact"]
    assert isinstance(fact, Fact)
    return fact.shape


def _multiplies(node: fx.Node) -> bool:
    return packet(node) in ("aten.linear", "aten.addmm", *_PRODUCTS) or "aten.conv" in packet(node)


def _uses(graph: fx.Graph) -> Mapping[str, int]:
    uses: dict[str, int] = {}
    for node in graph.find_nodes(op="get_attr"):
        uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    return uses


def _reader(node: fx.Node, given: Mapping[str, Any], uses: Mapping[str, int]) -> Reader | str:
    name = packet(node)
    if name == "aten.linear":
        return Reader(node, given["input"], leaf(given["weight"]) or "", _offset(node, given["bias"], uses))
    if name in _CONVOLUTIONS:
        source, geometry = given["input"], _geometry(given)
        return Reader(node, source, leaf(given["weight"]) or "", _offset(node, given["bias"], uses), geometry)
    if name == "aten.addmm":
        plain = given["beta"] == given["alpha"] == 1
        offset, (weight, turned) = _offset(node, given["self"], uses), _stored(given["mat2"])
        return Reader(node, given["mat1"], weight or "", offset, transposed=not turned) if plain else "it is scaled"
    if name in _PRODUCTS:
        other = given.get("mat2") or given.get("other")
        flat, (weight, turned) = isinstance(other, fx.Node) and len(shape(other)) == 2, _stored(other)
        return Reader(node, given["self"], weight or "", None, transposed=not turned) if flat else "its weight is no matrix"
    return f"{name} is not fitted"


def _stored(value: Any) -> tuple[str | None, bool]:
    """The name of the stored tensor that an argument is, and whether rows and columns are swapped on the way, for it alone."""
    swapped = isinstance(value, fx.Node) and packet(value) == "aten.permute" and value.args[1] == [1, 0] and len(value.users) == 1
    return leaf(value.args[0] if swapped else value), bool(swapped)


def _geometry(given: Mapping[str, Any]) -> Geometry:
    extent = shape(given["weight"])[2:]
    stride, dilation = (_repeated(given[key], len(extent)) for key in ("stride", "dilation"))
    padding = given["padding"]
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for k, d in zip(extent, dilation, strict=True)]
        sides = tuple((total // 2, total - total // 2) for total in totals)
    else:
        sides = tuple((p, p) for p in _repeated(padding, len(extent)))
    return Geometry(extent, stride, sides, dilation, given["groups"])


def _repeated(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def _offset(node: fx.Node, bias: Any, uses: Mapping[str, int]) -> tuple[Offset, str] | None:
    name = leaf(bias)
    if name is not None and uses[name] == 1 and isinstance(bias, fx.Node) and len(shape(bias)) == 1:
        return "bias", name
    behind = next(iter(node.users)) if len(node.users) == 1 else None
    if behind is None or packet(behind) != "aten.batch_norm":
        return None
    given = arguments(behind)
    mean = leaf(given["running_mean"])
    taken = given["input"] is node and not given["training"] and mean is not None and uses[mean] == 1
    return ("running_mean", mean) if taken and mean is not None else None


def _drawn(count: int, positions: int | None, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """So many of all positions, drawn at random; ``None`` for all."""
    if positions is None or positions >= count:
        return None
    return torch.randperm(count, generator=generator)[:positions].to(device)


def _points(inputs: Tensor, outputs: Sequence[Tensor], positions: int | None, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    at = _drawn(math.prod(inputs.shape[1:-1]), positions, generator, inputs.device)
    x, *ys = (v if at is None else v.flatten(1, -2).index_select(1, at) for v in (inputs, *outputs))
    return x.reshape(1, -1, x.shape[-1]), [y.reshape(1, -1, y.shape[-1]) for y in ys]


def _patches(inputs: Tensor, geometry: Geometry, sizes: torch.Size, at: Tensor | None) -> Tensor:
    """What the kernel sees from each position: ``(groups, n, taps * in)``."""
    padded = torch.Size(size + sum(sides) for size, sides in zip(inputs.shape[2:], geometry.padding, strict=True))
    under = _under(geometry, sizes, padded, at, inputs.device)
    if geometry.taps == 1 and padded == inputs.shape[2:]:
        taken = _taken(inputs, None if at is None and sizes == padded else under.flatten())
    else:
        taken = _channels_last(inputs, geometry.padding, padded).index_select(1, under.flatten())
    split = taken.reshape(-1, geometry.taps, geometry.groups, inputs.shape[1] // geometry.groups)
    return split.permute(2, 0, 1, 3).flatten(2)


def _under(geometry: Geometry, sizes: torch.Size, padded: torch.Size, at: Tensor | None, device: torch.device) -> Tensor:
    """Where in the padded inputs each tap of each position lies: ``(positions, taps)``."""
    positions = torch.arange(math.prod(sizes), device=device) if at is None else at
    taps = torch.arange(geometry.taps, device=device)
    under, step = torch.zeros(1, dtype=torch.int64, device=device), 1
    for axis in reversed(range(len(sizes))):
        place, tap = positions % sizes[axis] * geometry.stride[axis], taps % geometry.extent[axis] * geometry.dilation[axis]
        under = under + (place[:, None] + tap) * step
        positions, taps, step = positions // sizes[axis], taps // geometry.extent[axis], step * padded[axis]
    return under


def _channels_last(inputs: Tensor, padding: Sequence[tuple[int, int]], padded: torch.Size) -> Tensor:
    """Inputs with zeros around them: ``(samples, positions, channels)``."""
    moved = inputs.movedim(1, -1)
    if padded == inputs.shape[2:]:
        return moved.flatten(1, -2)
    laid = inputs.new_zeros(len(inputs), *padded, inputs.shape[1])
    inner = laid
    for axis, (before, _) in enumerate(padding):
        inner = inner.narrow(1 + axis, before, inputs.shape[2 + axis])
    inner.copy_(moved)
    return laid.flatten(1, -2)


def _positions(outputs: Tensor, groups: int, at: Tensor | None) -> Tensor:
    taken = _taken(outputs, at)
    return taken.reshape(-1, groups, outputs.shape[1] // groups).movedim(1, 0)


def _taken(values: Tensor, at: Tensor | None) -> Tensor:
    """Channels at so many positions, ``(samples, positions, channels)``; at many of them it is faster to lay out all."""
    flat = values.flatten(2)
    if at is None:
        return flat.mT
    return flat.index_select(2, at).mT if len(at) * FEW_POSITIONS < flat.shape[2] else flat.mT.contiguous().index_select(1, at)
