"""Recurrent layers: LSTM, GRU and plain RNN, of several layers and in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import fx

from secateur.groups.fields import Field, Labels, along, row_along
from secateur.groups.rules.indexing import hold
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(call: Call) -> Outcome:
    """Every gate has a row for each hidden unit, which the next step and the next layer read.

    A unit that is absent is zero at all times, provided that it starts at zero. All layers and directions keep equally many.
    """
    x: Operand = call["input" if "input" in call.args else "data"]
    starts = call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    cells = list(_cells(call))
    if any(_row(weight) is None for cell in cells for weight in cell):
        return call.refuse(f"{call.node.target} with weights of this kind has no rule")
    last = len(x.shape) - 1
    hold(call, x, frozenset(range(last)), "a dimension that a recurrent layer runs along")
    row = row_along(x.fields, last)
    inner = None if row is None else row.labels.ravel()
    call.ledger.freeze_fields(tuple(f for f in x.fields if last in f.dims and len(f.dims) > 1), "enters a recurrent layer by rows")
    both = 2 if call["bidirectional"] else 1
    units: list[Labels] = []
    for first in range(0, len(cells), both):
        found = [_cell(call, cell, inner) for cell in cells[first : first + both]]
        inner = np.concatenate(found)
        units += found
    assert inner is not None
    states = Field(np.stack(units)[:, None] if len(starts[0].shape) == 3 else np.stack(units))
    for start, node in zip(starts, _states(call.node), strict=True):
        _start(call, start, node, states)
    return [(Field(along(inner, len(call.shape) - 1, len(call.shape))),), *[(states,) for _ in starts]]


@rule("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def recurrent_cell(call: Call) -> Outcome:
    """One step of such a layer."""
    x, starts = call["input"], call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
    cell = [weight for name in ("w_ih", "w_hh", "b_ih", "b_hh") if (weight := call[name]) is not None]
    if any(_row(weight) is None for weight in cell) or len(x.shape) != 2:
        return call.refuse(f"{call.node.target} with operands of this kind has no rule")
    hold(call, x, frozenset({0}), "a batch that a recurrent cell runs on")
    row = row_along(x.fields, 1)
    states = Field(along(_cell(call, cell, None if row is None else row.labels.ravel()), 1, 2))
    for start, node in zip(starts, _states(call.node), strict=True):
        _start(call, start, node, states)
    return (states,) if len(call.shapes) == 1 else [(states,) for _ in call.shapes]


def _cells(call: Call) -> Iterator[Sequence[Operand]]:
    """The weights of each layer and direction: from the input, from the state, and their biases."""
    size = 4 if call["has_biases"] else 2
    weights: list[Operand] = call["params"]
    both = 2 if call["bidirectional"] else 1
    if len(weights) != call["num_layers"] * both * size:
        yield (Operand((), ()),)
        return
    for start in range(0, len(weights), size):
        yield weights[start : start + size]


def _row(weight: Operand) -> Labels | None:
    return next((f.labels.ravel() for f in weight.fields if f.dims == {0} and not f.block), None)


def _cell(call: Call, cell: Sequence[Operand], inner: Labels | None) -> Labels:
    """Unite the rows of all gates, and return the labels of the hidden units."""
    from_input, from_state = cell[:2]
    reads = next((f.labels.ravel() for f in from_state.fields if f.dims == {1}), None)
    width = from_state.shape[1]
    units: Labels = np.asarray(_row(from_input)).reshape(-1, width)[0]
    for weight in cell:
        call.ledger.unite(units, np.asarray(_row(weight)).reshape(-1, width))
        call.ledger.note(weight.fields, frozenset({0}), "writes" if len(weight.shape) > 1 else "carries")
        call.ledger.note(weight.fields, frozenset({1}), "reads")
    if reads is not None:
        call.ledger.unite(units, reads)
    _read(call, from_input, inner)
    return units


def _read(call: Call, weight: Operand, inner: Labels | None) -> None:
    """The columns of a weight meet what the layer reads."""
    columns = next((f.labels.ravel() for f in weight.fields if f.dims == {1}), None)
    if columns is not None and inner is not None:
        call.ledger.unite(inner, columns)
    elif columns is not None:
        call.ledger.freeze(columns, "reads values that are not made by prunable weights")
    elif inner is not None:
        call.ledger.freeze(inner, "enters a weight without labels")


def _start(call: Call, start: Operand, node: fx.Node, states: Field) -> None:
    """Units start at zero, at a value of another layer that they go with, or stay."""
    last = len(start.shape) - 1
    units = [f for f in start.fields if last in f.dims and not f.block]
    hold(call, start, frozenset(range(last)) if not units else frozenset(range(1, last)), "a dimension of states")
    for each in units:
        call.ledger.unite(each.labels, states.labels)
    if not units and not _is_zero(node):
        call.ledger.freeze(states.labels, "starts at a value that no prunable weight makes")


def _states(node: fx.Node) -> list[Any]:
    given: Any = node.args[2 if str(node.target).endswith(".data") else 1]
    return list(given) if isinstance(given, list | tuple) else [given]


def _is_zero(state: fx.Node) -> bool:
    return str(state.target).startswith(("aten.zeros.", "aten.new_zeros.", "aten.zeros_like."))
