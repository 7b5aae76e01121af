"""Write the many spellings of one movement in one way, so that later rooms meet few operators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from secateur.capture.capture import Fact
from secateur.capture.normalize.edit import Size, arguments, aten, fact, follows, positive, shape, size_of, symbolic

Rename = Callable[[fx.Node], None]
_WHOLE = sys.maxsize

_SPELLINGS = {
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "true_divide": "div",
}


def canonical_names(program: fx.GraphModule) -> None:
    """Leave one operator for each kind of data movement.

    Views become ``reshape`` with explicit sizes, reorderings of dimensions ``permute``, cuts along a dimension ``slice`` and
    ``split_with_sizes``; sizes that follow an input stay nodes (or a single -1).
    """
    for node in list(program.graph.nodes):
        if node.op == "call_function" and (rename := _RENAMES.get(node.target)):
            rename(node)


def _rewrite(node: fx.Node, target: Callable[..., Any], *args: Any) -> None:
    node.target, node.args, node.kwargs = target, args, {}


def _source(node: fx.Node) -> fx.Node:
    source = next(iter(arguments(node).values()))
    assert isinstance(source, fx.Node)
    return source


def _reshape(node: fx.Node, wanted: Sequence[Any]) -> None:
    """Make a node a reshape; ``wanted`` tells for each size that is not fixed: a node, -1, or the (tensor, dim) it comes from."""
    free = [dim for dim in range(len(shape(node))) if symbolic(node, dim)]

    def entry(dim: int) -> Size:
        if dim not in free:
            return shape(node)[dim]
        if len(free) == 1:
            return -1
        if not isinstance(wanted[dim], tuple):
            return wanted[dim]  # type: ignore[no-any-return]
        source, place = wanted[dim]
        return size_of(source, place, node)

    _rewrite(node, aten.reshape.default, _source(node), [entry(dim) for dim in range(len(shape(node)))])


def _view(node: fx.Node) -> None:
    _reshape(node, list(arguments(node).values())[1])


def _view_as(node: fx.Node) -> None:
    other = arguments(node)["other"]
    _reshape(node, [(other, dim) for dim in range(len(shape(node)))])


def _flatten(node: fx.Node) -> None:
    source, given = _source(node), arguments(node)
    rank = len(shape(source))
    start, end = positive(given["start_dim"], rank), positive(given["end_dim"], rank)
    _reshape(node, [*((source, dim) for dim in range(start)), -1, *((source, dim) for dim in range(end + 1, rank))])


def _unflatten(node: fx.Node) -> None:
    source, given = _source(node), arguments(node)
    rank = len(shape(source))
    split = positive(given["dim"], rank)
    _reshape(node, [*((source, dim) for dim in range(split)), *given["sizes"], *((source, dim) for dim in range(split + 1, rank))])


def _permute(node: fx.Node) -> None:
    rank = len(shape(node))
    _rewrite(node, aten.permute.default, _source(node), [positive(dim, rank) for dim in arguments(node)["dims"]])


def _swap(node: fx.Node) -> None:
    first, second = list(arguments(node).values())[1:3]
    _swapped(node, first, second)


def _swap_last(node: fx.Node) -> None:
    if len(shape(node)) > 1:
        _swapped(node, -2, -1)


def _swapped(node: fx.Node, first: int, second: int) -> None:
    rank = len(shape(node))
    order = list(range(rank))
    first, second = positive(first, rank), positive(second, rank)
    order[first], order[second] = order[second], order[first]
    _rewrite(node, aten.permute.default, _source(node), order)


def _reverse(node: fx.Node) -> None:
    _rewrite(node, aten.permute.default, _source(node), list(range(len(shape(node))))[::-1])


def _move(node: fx.Node) -> None:
    rank = len(shape(node))
    given = arguments(node)
    one = isinstance(given["source"], int)
    source = [positive(dim, rank) for dim in ([given["source"]] if one else given["source"])]
    target = [positive(dim, rank) for dim in ([given["destination"]] if one else given["destination"])]
    rest = iter(dim for dim in range(rank) if dim not in source)
    order = [source[target.index(dim)] if dim in target else next(rest) for dim in range(rank)]
    _rewrite(node, aten.permute.default, _source(node), order)


def _narrow(node: fx.Node) -> None:
    given = arguments(node)
    start, length = given["start"], given["length"]
    if isinstance(start, int) and isinstance(length, int):
        end = _WHOLE if start < 0 and start + length == 0 else start + length
        _rewrite(node, aten.slice.Tensor, _source(node), given["dim"], start, end)
        _slice(node)


def _slice(node: fx.Node) -> None:
    source, given = _source(node), arguments(node)
    dim = positive(given["dim"], len(shape(source)))
    size = None if symbolic(source, dim) else shape(source)[dim]
    start = _bound(given["start"], size, default=0)
    end = _bound(given["end"], size, default=_WHOLE if size is None else size)
    step = given["step"]
    _rewrite(node, aten.slice.Tensor, source, dim, start, end, *([] if step == 1 else [step]))


def _bound(given: Any, size: int | None, *, default: int) -> Size:
    if given is None:
        return default
    if isinstance(given, fx.Node) and size is not None and not follows(given):
        given = given.meta["fact"]
    if isinstance(given, fx.Node) or size is None:
        return given  # type: ignore[no-any-return]
    return int(min(max(positive(given, size), 0), size))


def _select(node: fx.Node) -> None:
    source, given = _source(node), arguments(node)
    dim = positive(given["dim"], len(shape(source)))
    index = given["index"]
    if isinstance(index, int) and not symbolic(source, dim):
        index = positive(index, shape(source)[dim])
    _rewrite(node, aten.select.int, source, dim, index)


def _split(node: fx.Node) -> None:
    _divide(node, arguments(node).get("dim", 0))


def _divide(node: fx.Node, dim: int) -> None:
    source = _source(node)
    dim = positive(dim, len(shape(source)))
    parts = node.meta["fact"]
    live = any(follows(each) for each in node.all_input_nodes if each is not source)
    if not symbolic(source, dim) and not live and all(isinstance(part, Fact) for part in parts):
        _rewrite(node, aten.split_with_sizes.default, source, [part.shape[dim] for part in parts], dim)


def _hsplit(node: fx.Node) -> None:
    _divide(node, 0 if len(shape(_source(node))) == 1 else 1)


def _vsplit(node: fx.Node) -> None:
    _divide(node, 0)


def _dsplit(node: fx.Node) -> None:
    _divide(node, 2)


def _unbind(node: fx.Node) -> None:
    source = _source(node)
    _rewrite(node, aten.unbind.int, source, positive(arguments(node)["dim"], len(shape(source))))


def _expand_as(node: fx.Node) -> None:
    source, other = _source(node), arguments(node)["other"]
    added = len(shape(node)) - len(shape(source))

    def entry(dim: int) -> Size:
        if symbolic(node, dim) and dim >= added and symbolic(source, dim - added):
            return -1
        return size_of(other, dim, before=node)

    _rewrite(node, aten.expand.default, source, [entry(dim) for dim in range(len(shape(node)))])


def _squeeze(node: fx.Node) -> None:
    source = _source(node)
    dims = [dim for dim, size in enumerate(shape(source)) if size == 1 and not symbolic(source, dim)]
    _rewrite(node, aten.squeeze.dims, source, dims)


def _type_as(node: fx.Node) -> None:
    _rewrite(node, aten.to.dtype, _source(node), fact(node).dtype)


def _stacked(dim: int) -> Rename:
    """Joining along one dimension, for parts of the result's rank."""

    def rename(node: fx.Node) -> None:
        parts = arguments(node)["tensors"]
        if all(len(shape(part)) == len(shape(node)) for part in parts):
            _rewrite(node, aten.cat.default, parts, dim)

    return rename


def _hstack(node: fx.Node) -> None:
    _stacked(min(1, len(shape(node)) - 1))(node)


def _renames() -> dict[Any, Rename]:
    table: dict[Rename, list[Any]] = {
        _view: [aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.view_copy.default],
        _view_as: [aten.view_as.default, aten.reshape_as.default],
        _flatten: [aten.flatten.using_ints],
        _unflatten: [aten.unflatten.int],
        _permute: [aten.permute.default, aten.permute_copy.default],
        _swap: [aten.transpose.int, aten.swapaxes.default, aten.swapdims.default, aten.transpose_copy.int, aten.transpose_.default],
        _swap_last: [aten.t.default, aten.t_.default, aten.mT.default],
        _reverse: [aten.numpy_T.default],
        _move: [aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist],
        _narrow: [aten.narrow.default],
        _slice: [aten.slice.Tensor],
        _select: [aten.select.int],
        _split: [
            aten.split.Tensor,
            aten.split.sizes,
            aten.split_with_sizes.default,
            aten.chunk.default,
            aten.tensor_split.sections,
            aten.tensor_split.indices,
            aten.unsafe_chunk.default,
            aten.unsafe_split.Tensor,
            aten.unsafe_split_with_sizes.default,
        ],
        _hsplit: [aten.hsplit.int, aten.hsplit.array],
        _vsplit: [aten.vsplit.int, aten.vsplit.array],
        _dsplit: [aten.dsplit.int, aten.dsplit.array],
        _unbind: [aten.unbind.int],
        _expand_as: [aten.expand_as.default],
        _respell(aten.expand.default): [aten.broadcast_to.default],
        _squeeze: [aten.squeeze.default, aten.squeeze_.default],
        _respell(aten.squeeze.dim): [aten.squeeze_.dim],
        _respell(aten.squeeze.dims): [aten.squeeze_.dims],
        _respell(aten.unsqueeze.default): [aten.unsqueeze_.default],
        _type_as: [aten.type_as.default],
        _hstack: [aten.hstack.default],
        _stacked(1): [aten.column_stack.default],
        _stacked(2): [aten.dstack.default],
        _stacked(0): [aten.vstack.default],
    }
    renames = {target: rename for rename, targets in table.items() for target in targets}
    for spelling, name in _SPELLINGS.items():
        packet, canonical = getattr(aten, spelling), getattr(aten, name)
        for each in set(packet.overloads()) & set(canonical.overloads()):
            renames[getattr(packet, each)] = _respell(getattr(canonical, each))
    return renames


def _respell(target: Any) -> Rename:
    def rename(node: fx.Node) -> None:
        node.target = target

    return rename


_RENAMES = _renames()
