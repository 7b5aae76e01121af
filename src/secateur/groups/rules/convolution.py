"""Convolutions of one to three dimensions: plain, grouped, depthwise, transposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from secateur.groups.fields import NONE, Field, Fields, along
from secateur.groups.ledger import Rectangle
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.contraction import product
from secateur.groups.rules.registry import Call, Operand, Outcome, rule

SPATIAL = "efgh"


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d", pliant=True)
def convolution(call: Call) -> Outcome:
    """Channels contract with the weight's input side; the weight's output side labels the result."""
    return _convolve(call, call["input"], call["weight"], call["bias"], call["groups"], transposed=False)


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(call: Call) -> Outcome:
    """As a convolution, with a weight of shape ``(in, out / groups, ...)``."""
    return _convolve(call, call["input"], call["weight"], call["bias"], call["groups"], transposed=True)


@rule("aten.convolution")
def general_convolution(call: Call) -> Outcome:
    """The one operator behind all of them."""
    return _convolve(call, call["input"], call["weight"], call["bias"], call["groups"], transposed=call["transposed"])


def _convolve(call: Call, x: Operand, weight: Operand, bias: Operand | None, groups: int, *, transposed: bool) -> Outcome:
    spatial = len(weight.shape) - 2
    if len(x.shape) == spatial + 1:
        return call.refuse("a convolution without a batch dimension has no rule")
    slid = _slid_over(call, x, weight)
    x, weight = _hold_spatial(call, x, weight, slid)
    grouped = groups > 1
    fields = _grouped(call, x, weight, groups, transposed=transposed) if grouped else _plain(call, x, weight, transposed=transposed)
    if bias is not None:
        lifted = tuple(Field(f.labels.reshape(-1, *[1] * spatial), f.block) for f in bias.fields)
        fields = meet(call.ledger, [Shaped(call.shape, fields), Shaped((bias.shape[0], *[1] * spatial), lifted)], len(call.shape))
    made = (Field(along(call.ledger.fresh(call.shape[d]), d, len(call.shape)), pliant=True) for f in slid for d in f.dims)
    return (*fields, *(f for f in made if f.dims))


def mixed_dims(kernel: Sequence[int], before: Sequence[int], after: Sequence[int], stride: int | Sequence[int]) -> frozenset[int]:
    """Dimensions along which a convolution mixes or moves positions, given the shapes of its weight, its input and its output."""
    steps = [stride] * len(kernel) if isinstance(stride, int) else [1, 1, *(list(stride) * len(kernel))]
    return frozenset(d for d in range(2, len(kernel)) if kernel[d] > 1 or after[d] != before[d] or (steps[d] != 1 and before[d] > 1))


def _mixed(call: Call, x: Operand, weight: Operand) -> frozenset[int]:
    return mixed_dims(weight.shape, x.shape, call.shape, call["stride"])


def _slid_over(call: Call, x: Operand, weight: Operand) -> Fields:
    """Labels of single spatial dimensions: the kernel finds zeros where they went, and of what it makes any part can be taken."""
    spatial = _mixed(call, x, weight)
    return tuple(f for f in x.fields if any(f.dims == {d} for d in spatial) and not f.block and (f.labels != NONE).all())


def _hold_spatial(call: Call, x: Operand, weight: Operand, slid: Fields) -> tuple[Operand, Operand]:
    """Keep labels along kernel dimensions whole, and those along spatial ones that are mixed together with others."""
    spatial, mixed = frozenset(range(2, len(weight.shape))), _mixed(call, x, weight)
    weight = _without(call, weight, spatial, "dimension of a convolution kernel")
    x = replace(x, fields=tuple(f for f in x.fields if f not in slid))
    return _without(call, x, mixed, "dimension over which a convolution slides"), weight


def _without(call: Call, operand: Operand, dims: frozenset[int], text: str) -> Operand:
    held = tuple(f for f in operand.fields if f.dims & dims)
    call.ledger.freeze_fields(held, text)
    fields = tuple(f for f in operand.fields if not f.dims & dims)
    return Operand(operand.shape, fields, operand.value, operand.leaf, operand.parametric)


def _plain(call: Call, x: Operand, weight: Operand, *, transposed: bool) -> Fields:
    spatial = SPATIAL[: len(weight.shape) - 2]
    flat = Operand(
        weight.shape[:2], tuple(Field(f.labels.reshape(f.labels.shape[:2]), f.block) for f in weight.fields), parametric=weight.parametric
    )
    return product(call, [x, flat], ["bi" + spatial, "io" if transposed else "oi"], "bo" + spatial)


def _grouped(call: Call, x: Operand, weight: Operand, groups: int, *, transposed: bool) -> Fields:
    """Rows of equal counts on both sides: one row a group, and one block label for the group."""
    rank, channels, out = len(x.shape), x.shape[1], call.shape[1]
    others = tuple(f for f in x.fields if 1 not in f.dims)
    joint = [f for f in x.fields if 1 in f.dims and len(f.dims) > 1]
    mine = [f for f in x.fields if f.dims == {1}]
    weights = [f for f in weight.fields if f.dims == {0}]
    if not any(1 in f.dims for f in x.fields) and len(weights) == 1 and weight.leaf:
        return (*others, _from_bare_input(call, weight, weights[0].labels.ravel(), groups, transposed=transposed))
    if joint and channels == groups == out and len(weights) == 1 and any(f.block for f in mine) and not transposed:
        return _row_by_row(call, x, weight, weights[0])
    if joint or len(mine) != 1 or len(weights) != 1 or not (weight.leaf or (channels == groups and not transposed)):
        return _bare_group(call, x, weight, others)
    inputs, slots = mine[0].labels.reshape(groups, -1), weights[0].labels.ravel()
    if transposed:
        return _grouped_transposed(call, weight, inputs, slots, groups, others)
    call.ledger.note(weight.fields, frozenset({0}), "carries" if channels == groups else "writes")
    labels = slots.reshape(groups, -1)
    if channels == groups:
        call.ledger.unite(inputs, labels)
        if weight.leaf:
            _orphan(call, weight)
    else:
        assert weight.leaf
        _join_groups(call, inputs, labels)
        own = call.ledger.grouped.setdefault(weight.leaf, call.ledger.fresh(channels).reshape(groups, -1))
        call.ledger.unite(inputs, own)
        call.ledger.roles.append((own.ravel(), "reads", call.ledger.place.node))
        _orphan(call, weight)
    return (*others, Field(along(labels.reshape(out), 1, rank)))


def _row_by_row(call: Call, x: Operand, weight: Operand, slots: Field) -> Fields:
    """A kernel for each row of channels, as of heads, that lie along another dimension than those that it slides over."""
    call.ledger.note(weight.fields, frozenset({0}), "carries")
    _orphan(call, weight)
    rank = len(x.shape)
    kernels = Shaped((1, x.shape[1], *[1] * (rank - 2)), (Field(along(slots.labels.ravel(), 1, rank)),))
    return meet(call.ledger, [x, kernels], rank)


def _from_bare_input(call: Call, weight: Operand, slots: np.ndarray, groups: int, *, transposed: bool) -> Field:
    """Groups of input channels that all stay: each makes equally many channels."""
    labels = _slots(call, weight, groups) if transposed else slots.reshape(groups, -1)
    call.ledger.roles.append((labels.ravel(), "writes", call.ledger.place.node))
    call.ledger.rectangles.append(Rectangle(labels, None, call.ledger.place.node))
    read = 0 if transposed else 1
    call.ledger.freeze_fields(tuple(f for f in weight.fields if f.dims == {read}), "reads channels that are not made by prunable weights")
    if transposed:
        _orphan(call, weight)
    return Field(along(labels.ravel(), 1, len(call.shape)))


def _slots(call: Call, weight: Operand, groups: int) -> np.ndarray:
    """Labels of what a grouped transposed convolution makes, one row a group."""
    assert weight.leaf
    size = call.shape[1]
    return call.ledger.grouped.setdefault(weight.leaf, call.ledger.fresh(size).reshape(groups, -1))


def _grouped_transposed(call: Call, weight: Operand, inputs: np.ndarray, slots: np.ndarray, groups: int, others: Fields) -> Fields:
    """Weight ``(in, out / groups, ...)``: dimension 0 reads; the output side has slots for each group."""
    call.ledger.unite(inputs, slots.reshape(groups, -1))
    out, own = call.shape[1], _slots(call, weight, groups)
    depthwise = inputs.shape[1] == own.shape[1] == 1
    call.ledger.note(weight.fields, frozenset({0}), "carries" if depthwise else "reads")
    call.ledger.roles.append((own.ravel(), "carries" if depthwise else "writes", call.ledger.place.node))
    if depthwise:
        call.ledger.unite(inputs, own)
    else:
        _join_groups(call, inputs, own)
    _orphan(call, weight)
    return (*others, Field(along(own.reshape(out), 1, len(call.shape))))


def _join_groups(call: Call, inputs: np.ndarray, outputs: np.ndarray) -> None:
    block = call.ledger.fresh(inputs.shape[0])
    for table in (inputs, outputs):
        call.ledger.contain(block[:, None], table)
        call.ledger.rectangles.append(Rectangle(table, block, call.ledger.place.node))


def _orphan(call: Call, weight: Operand) -> None:
    """Dimension 1 of a grouped weight is cut by the slots of its groups, not by labels of its own."""
    call.ledger.orphans.add((str(weight.leaf), 1))


def _bare_group(call: Call, x: Operand, weight: Operand, others: Fields) -> Fields:
    text = "enters a grouped convolution whose channels or weights carry no plain labels"
    call.ledger.freeze_fields(tuple(f for f in x.fields if 1 in f.dims), text)
    call.ledger.freeze_fields(weight.fields, text)
    return others


@rule("torchvision.deform_conv2d")
def deformable_convolution(call: Call) -> Outcome:
    """A convolution whose kernel points are moved by offsets, which are positions and stay."""
    if call["groups"] > 1 or call["offset_groups"] > 1:
        return call.refuse("a deformable convolution of several groups has no rule")
    for name in ("offset", "mask"):
        call.ledger.freeze_fields(call[name].fields, "says where a deformable convolution looks")
    return _convolve(call, call["input"], call["weight"], call["bias"], call["groups"], transposed=False)
