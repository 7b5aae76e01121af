"""Walk a captured graph once: labels for every weight, rules for every call, relations into the ledger."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from secateur.capture.capture import Capture, Fact
from secateur.capture.casts import stored_name
from secateur.capture.normalize.constants import PLIANT
from secateur.groups.fields import Field, Fields, Labels, along
from secateur.groups.ledger import Ledger, Reason
from secateur.groups.meeting import UNLABELLED
from secateur.groups.rules import Call, Operand, find, takes_pliant
from secateur.groups.unread import hold_unread


@dataclass
class Walk:
    """The fields of every node, the labels of every weight, and all relations found."""

    capture: Capture
    ledger: Ledger = field(default_factory=Ledger)
    fields: dict[fx.Node, Any] = field(default_factory=dict)
    """Fields of a node's tensor, or a list of such for several outputs."""
    slots: dict[tuple[str, int], Labels] = field(default_factory=dict)
    """Labels of each dimension of each weight."""
    ranks: dict[str, int] = field(default_factory=dict)
    """How many dimensions each weight has, those of one position among them."""
    free: set[fx.Node] = field(default_factory=set)
    """Nodes in which no input of the model has a say."""

    def tensor_fields(self, node: fx.Node) -> Fields:
        """Fields of a node with one output."""
        fields: Fields = self.fields.get(node, ())
        return fields


def walk(capture: Capture, *, branches: Mapping[str, Capture] | None = None) -> Walk:
    """Give every weight labels and let the rules carry them through the graph.

    ``branches`` are captures of the same model as it runs elsewhere, by where that is (``"in training mode"``): what one reads beyond
    the graph stays whole, with all that meets it there.
    """
    state = Walk(capture)
    with torch.no_grad():
        _visit_all(state, capture)
        hold_unread(state, capture.graph)
        for where, branch in (branches or {}).items():
            _hold_branches(state, branch, where)
    return state


def _visit_all(state: Walk, capture: Capture) -> None:
    for node in capture.graph.nodes:
        state.ledger.place = Reason("", node.name, node.meta.get("module", ""))
        _visit(state, node)


def _hold_branches(state: Walk, branch: Capture, where: str) -> None:
    """Add the relations between labels that a run elsewhere finds; what nodes did is told of the graph alone."""
    ledger, known = state.ledger, set(state.slots)
    roles, unknown, renormalising = list(ledger.roles), dict(ledger.unknown), dict(ledger.renormalising)
    _visit_all(state, branch)
    ledger.roles, ledger.unknown, ledger.renormalising = roles, unknown, renormalising
    for (name, dim), labels in state.slots.items():
        if (name, dim) not in known:
            ledger.place = Reason("", name, name.rpartition(".")[0])
            ledger.freeze(labels, f"is read {where} alone")


def _visit(state: Walk, node: fx.Node) -> None:
    if node.op == "placeholder":
        state.fields[node] = ()
    elif node.op == "get_attr":
        state.free.add(node)
        state.fields[node] = _label_leaf(state, str(node.target), node.meta.get("fact"))
    elif node.op == "output":
        for source in node.all_input_nodes:
            for fields in _listed(state.fields.get(source, ())):
                state.ledger.freeze_fields(fields, "reaches the model's output")
    else:
        _call(state, node)


def _listed(fields: Any) -> list[Fields]:
    return fields if isinstance(fields, list) else [fields]


def _label_leaf(state: Walk, name: str, fact: Any) -> Fields:
    if not isinstance(fact, Fact) or not (fact.dtype.is_floating_point or fact.dtype.is_complex):
        return ()
    fields = []
    state.ranks[name] = len(fact.shape)
    for dim, size in enumerate(fact.shape):
        if size > 1:
            if (name, dim) not in state.slots:
                state.slots[name, dim] = state.ledger.fresh(size)
            fields.append(Field(along(state.slots[name, dim], dim, len(fact.shape))))
    return tuple(fields)


def _call(state: Walk, node: fx.Node) -> None:
    if all(n in state.free for n in node.all_input_nodes):
        state.free.add(node)
    if node.target is operator.getitem and isinstance(state.fields.get(node.args[0]), list):  # type: ignore[arg-type]
        state.fields[node] = state.fields[node.args[0]][node.args[1]]  # type: ignore[index]
        return
    shapes = [f.shape for f in _facts(node)]
    call = Call(node, state.ledger, _bind(state, node), shapes)
    outcome = _apply(state, node, call)
    several = isinstance(node.meta.get("fact"), list | tuple)
    state.fields[node] = outcome if several == isinstance(outcome, list) else ([outcome] if several else outcome[0])
    for fields in _listed(outcome):
        state.ledger.require_rows(fields)


def _apply(state: Walk, node: fx.Node, call: Call) -> Any:
    if PLIANT in node.meta:
        return _pliant(state, node, call.shape)
    function = find(node.target)
    call = call if takes_pliant(function) else _firm(call)
    if not any(o.fields for o in call.operands()):
        return [() for _ in call.shapes] if len(call.shapes) > 1 else ()
    mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    if function is None or mutable:
        state.ledger.unknown[node.name] = str(node.target)
        return call.refuse(f"{node.target} has no rule")
    return function(call)


def _pliant(state: Walk, node: fx.Node, shape: tuple[int, ...]) -> Fields:
    """Labels along the fixed dimensions of a tensor that no weight makes: positions of it can be left out as others ask."""
    return tuple(Field(along(state.ledger.fresh(shape[d]), d, len(shape)), pliant=True) for d in node.meta[PLIANT] if shape[d] > 1)


def _firm(call: Call) -> Call:
    """The call without the pliant fields of its operands, which stay."""
    found = [f for o in call.operands() for f in o.fields if f.pliant]
    if not found:
        return call
    call.ledger.freeze_fields(tuple(found), UNLABELLED)
    return replace(call, args={name: _without_pliant(value) for name, value in call.args.items()})


def _without_pliant(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_pliant(v) for v in value]
    return replace(value, fields=tuple(f for f in value.fields if not f.pliant)) if isinstance(value, Operand) else value


def _facts(node: fx.Node) -> list[Fact]:
    fact = node.meta.get("fact")
    return [f for f in (fact if isinstance(fact, list | tuple) else [fact]) if isinstance(f, Fact)]


def _bind(state: Walk, node: fx.Node) -> dict[str, Any]:
    """The arguments by the names of the operator's schema, tensors as operands, numbers as plain values."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): _operand(state, a) for i, a in enumerate([*node.args, *node.kwargs.values()])}
    bound = {}
    for place, argument in enumerate(node.target._schema.arguments):
        if place < len(node.args):
            value = node.args[place]
        else:
            value = node.kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None)
        bound[argument.name] = _operand(state, value)
    return bound


def _operand(state: Walk, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_operand(state, v) for v in value]
    if not isinstance(value, fx.Node):
        return value
    fact = value.meta.get("fact")
    if isinstance(fact, Fact):
        return Operand(fact.shape, state.tensor_fields(value), fact.value, stored_name(value), value in state.free)
    return [Operand(f.shape, fs, f.value) for f, fs in zip(fact, state.fields[value], strict=True)] if isinstance(fact, list) else fact
