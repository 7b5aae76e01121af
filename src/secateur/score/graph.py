"""Calls of a graph by the names of their operators and arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def packet(node: fx.Node) -> str:
    """The name of a call's operator without namespace and overload; nothing for other nodes."""
    return node.target.overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""


def leaf(value: Any) -> str | None:
    """The name of the stored tensor that an argument is."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def argument(node: fx.Node, name: str) -> Any:
    """An argument by the name in the operator's schema, the default included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for place, found in enumerate(node.target._schema.arguments):
        if found.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, found.default_value)
    return None
