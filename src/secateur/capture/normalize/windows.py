"""Write views that count memory by strides as what they are: reshapes, windows that slide, slices and permutations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from secateur.capture.normalize.edit import aten, emit, operands, shape, size_of, static, symbolic

Extent = tuple[int, int]
"""Size and stride of a dimension."""
Step = tuple[Any, ...]
"""A function and what it takes beside the tensor."""


def name_windows(program: fx.GraphModule) -> None:
    """Replace ``as_strided`` where sizes and strides prove that it shows nothing but windows of its operand."""
    for node in program.graph.find_nodes(op="call_function", target=aten.as_strided.default):
        steps = _steps(node)
        if steps:
            node.replace_all_uses_with(_emitted(node, steps))


def _emitted(node: fx.Node, steps: list[Step]) -> fx.Node:
    """The steps as calls, an open size in front and the sizes at the end as the graph has them."""
    source, sizes, *_ = operands(node)
    (_, first), *between, _ = steps
    if symbolic(source, 0):
        first = [size_of(source, 0, node), *first[1:]]
    made: fx.Node = source
    for target, *given in [(aten.reshape.default, first), *between, (aten.reshape.default, sizes)]:
        made = emit(node, target, made, *given, like=node)
    return made


def _steps(node: fx.Node) -> list[Step]:
    """What makes the same of the operand, from a reshape to a reshape; nothing if it is not known how that lies in memory."""
    source, _, strides, *_ = operands(node)
    lies = _strides(node)
    if not lies:
        return []
    have, wanted = _wide(shape(source), lies), _wide(shape(node), strides)
    for steps in _ways(have, wanted, shape(node), int(symbolic(source, 0))):
        if _wide(*_shown(torch.empty_strided(shape(source), lies, device="meta"), steps)) == wanted:
            return steps
    return []


def _strides(node: fx.Node) -> tuple[int, ...]:
    """The strides of the operand if no input's size changes them: all sizes are fixed, but for an outermost one that is shown whole."""
    source, sizes, strides, *offset = operands(node)
    place: Any = getattr(source.meta.get("memory"), "place", None)
    if place is None or any(isinstance(each, fx.Node) for each in [*sizes[1:], *strides, *offset]):
        return ()
    _, _, begin, size, lies, _ = place
    if size != shape(source) or offset not in ([], [None], [begin]) or not static(source, range(1, len(size))):
        return ()
    shown_whole = (shape(node)[0], strides[0]) == (size[0], lies[0]) and lies[0] == max(lies)
    return tuple(lies) if not symbolic(source, 0) or shown_whole else ()


def _wide(sizes: Sequence[int], strides: Sequence[int]) -> list[Extent]:
    """The dimensions of more than one position."""
    return [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1]


def _shown(tensor: torch.Tensor, steps: list[Step]) -> tuple[Sequence[int], Sequence[int]]:
    """Sizes and strides of the view that some steps make; none if they make no view."""
    try:
        for target, *given in steps:
            tensor = (aten.view.default if target is aten.reshape.default else target)(tensor, *given)
    except RuntimeError:
        return (), ()
    return tensor.shape, tensor.stride()


def _ways(have: list[Extent], wanted: list[Extent], sizes: Sequence[int], first: int) -> Iterator[list[Step]]:
    """Candidates: all dimensions in another order, or windows along one, or along some that lie behind each other."""
    if sorted(have) == sorted(wanted):
        order = [have.index(extent) for extent in wanted]
        yield [(aten.reshape.default, [size for size, _ in have]), (aten.permute.default, order), (aten.reshape.default, list(sizes))]
    for start in range(first, len(have)):
        for stop in range(start + 1, len(have) + 1):
            others = [*have[:start], *have[stop:]]
            rest = [extent for extent in wanted if extent not in others]
            if len(rest) == 2 and len(wanted) == len(others) + 2 and _follow(have[start:stop]):
                yield from _along(have, wanted, sorted(rest, key=lambda extent: -extent[1]), slice(start, stop), sizes)


def _follow(run: list[Extent]) -> bool:
    """Whether dimensions can be read as one."""
    return all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(run))


def _along(have: list[Extent], wanted: list[Extent], pair: list[Extent], run: slice, sizes: Sequence[int]) -> Iterator[list[Step]]:
    """Windows of some dimensions that are merged to one, where a pair of the wanted dimensions are their number and their width."""
    (length, unit), (count, width) = (math.prod(size for size, _ in have[run]), have[run][-1][1]), pair
    windows = [*have[: run.start], count, *have[run.stop :], width]
    if width[1] == unit and count[1] % unit == 0 and count != width:
        yield [
            (aten.reshape.default, [*(size for size, _ in have[: run.start]), length, *(size for size, _ in have[run.stop :])]),
            (aten.unfold.default, run.start, width[0], count[1] // unit),
            (aten.slice.Tensor, run.start, 0, count[0]),
            (aten.permute.default, [windows.index(extent) for extent in wanted]),
            (aten.reshape.default, list(sizes)),
        ]
