"""Positions of weights that no call reads for the inputs that were shown: other inputs, such as longer ones, may read them."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from secateur.capture.calls import short_name
from secateur.groups.fields import Field, Labels
from secateur.groups.ledger import Reason

if TYPE_CHECKING:
    from secateur.groups.walk import Walk

_SELECTING = frozenset(
    ("slice", "select", "split_with_sizes", "split", "chunk", "unbind", "narrow", "index_select", "constant_pad_nd", "pad", "getitem")
)
_MOVING = frozenset(
    ("reshape", "view", "permute", "transpose", "expand", "squeeze", "unsqueeze", "clone", "contiguous", "to", "_to_copy", "flip", "cat")
)


def hold_unread(state: Walk, graph: fx.Graph) -> None:
    """Hold the positions that every reader of a weight leaves out."""
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.find_nodes(op="get_attr"):
        nodes.setdefault(str(node.target), []).append(node)
    partly = {name: each for name, each in nodes.items() if not any(map(_is_read, each))}
    read = {name: np.concatenate([_read(state, node) for node in each]) for name, each in partly.items()}
    for (name, _), labels in state.slots.items():
        if name in read:
            unread = np.setdiff1d(labels, read[name])
            if unread.size:
                state.ledger.place = Reason("", name, name.rpartition(".")[0])
                state.ledger.freeze(unread, "no call reads it for these inputs")


def _is_read(node: fx.Node) -> bool:
    """Whether some call does something with the whole of a node."""
    return any(_name(user) not in _SELECTING | _MOVING for user in node.users)


def _read(state: Walk, node: fx.Node) -> Labels:
    """The labels of a node that calls do something with, other than moving them or leaving them out."""
    own = _labels(state, node)
    if _is_read(node):
        return own
    found = [own[:0]]
    for user in node.users:
        below = _read(state, user)
        kept = np.intersect1d(own, below) if _name(user) in _SELECTING else np.setdiff1d(own, np.setdiff1d(_labels(state, user), below))
        found.append(kept)
    return np.unique(np.concatenate(found))


def _labels(state: Walk, node: fx.Node) -> Labels:
    fields: Any = state.fields.get(node, ())
    every: list[Field] = [f for each in fields for f in each] if isinstance(fields, list) else list(fields)
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(f.labels.ravel() for f in every)]))


def _name(node: fx.Node) -> str:
    return "getitem" if node.target is operator.getitem else short_name(node)
