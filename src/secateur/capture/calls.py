"""Calls of a graph by the names of their operators and arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def packet(node: fx.Node) -> str:
    """The name of a call's operator, such as ``aten.linear``, without its overload; nothing for other nodes."""
    return str(node.target.overloadpacket) if isinstance(node.target, torch._ops.OpOverload) else ""


def short_name(node: fx.Node) -> str:
    """The name of a call's operator without namespace and overload, such as ``linear``; nothing for other nodes."""
    return node.target.overloadpacket.__name__ if isinstance(node.target, torch._ops.OpOverload) else ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by the names in the operator's schema, defaults included; none for other nodes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    named = {a.name: a.default_value if a.has_default_value() else None for a in node.target._schema.arguments}
    return named | dict(zip(named, node.args, strict=False)) | dict(node.kwargs)


def argument(node: fx.Node, name: str) -> Any:
    """An argument by the name in the operator's schema, the default included; ``None`` where it has none of that name."""
    return arguments(node).get(name)


def leaf(value: Any) -> str | None:
    """The name of the stored tensor that an argument is."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None
