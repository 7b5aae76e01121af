"""Autocast, written down as conversions in front of the calls that it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

CONVERT = torch.ops.aten.to.dtype


def cast_dtype(target: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> torch.dtype | None:
    """The dtype to which autocast brought the operands of a call, as that of its result shows; ``None`` if it left them alone.

    What the call gives without autocast is found from shapes and dtypes alone.
    """
    if not isinstance(target, OpOverload) or target._schema.is_mutable or target is CONVERT:
        return None
    found = next((x.dtype for x in pytree.tree_leaves(result) if isinstance(x, Tensor)), None)
    if found is None or not found.is_floating_point or not any(converts(x, found) for x in pytree.tree_leaves((args, kwargs))):
        return None
    return None if _plainly(target, args, kwargs) == found else found


def converts(value: Any, dtype: torch.dtype) -> bool:
    """Whether autocast converts a value when it brings operands to a dtype; it leaves double precision alone."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype not in (dtype, torch.float64)


def stored_name(node: fx.Node) -> str | None:
    """The parameter or buffer that a node reads, if need be in another dtype."""
    source = node.args[0] if node.target is CONVERT else node
    return str(source.target) if isinstance(source, fx.Node) and source.op == "get_attr" else None


def _plainly(target: OpOverload, args: Any, kwargs: Any) -> torch.dtype | None:
    """The dtype of the result without autocast; none if the call does not take such operands at all."""
    args, kwargs = pytree.tree_map(_without_content, (args, kwargs))
    try:
        with torch.autocast("cpu", enabled=False):
            leaves = pytree.tree_leaves(target(*args, **kwargs))
    except Exception:  # noqa: BLE001 - operators refuse operands of unlike dtypes in many ways
        return None
    return next((x.dtype for x in leaves if isinstance(x, Tensor)), None)


def _without_content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty([_seen(size) for size in value.shape], dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else _seen(value)


def _seen(value: Any) -> Any:
    """A number as the run saw it; asking an open size for it outright would fix it."""
    return value.node.hint if isinstance(value, torch.SymInt) else value
