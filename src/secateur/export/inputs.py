"""Example inputs as tensors and a description of how they are nested, without pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.errors import FileError
from secateur.export.tensors import read_tensors, write_tensors


def write_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path) -> str | None:
    """Write example inputs; returns why not if they hold something that is neither tensor nor plain value."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    tensors: dict[str, Tensor] = {}
    try:
        described = [_describe(leaf, tensors) for leaf in leaves]
        nesting = json.dumps({"leaves": described, "spec": pytree.treespec_dumps(spec)}, allow_nan=False)
    except (TypeError, NotImplementedError, ValueError) as error:
        return f"the example inputs cannot be written without pickle: {error}"
    write_tensors(tensors, path, {"format": "pt", "nesting": nesting})
    return None


def read_inputs(path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as ``(args, kwargs)``, nested as they were written."""
    tensors, metadata = read_tensors(path)
    try:
        nesting = json.loads(metadata["nesting"])
        leaves = [_restore(leaf, tensors) for leaf in nesting["leaves"]]
        args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(nesting["spec"]))
    except (KeyError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise FileError(f"{path} does not tell how the inputs are nested ({error!r}). Save the result again.") from error
    return tuple(args), dict(kwargs)


def _describe(leaf: Any, tensors: dict[str, Tensor]) -> Any:
    """One leaf as JSON; a tensor by the name under which it is stored."""
    if isinstance(leaf, Tensor):
        name = f"input_{len(tensors)}"
        # Two inputs may be one tensor; in the file each has its own.
        tensors[name] = leaf.detach().clone()
        return {"tensor": name}
    if leaf is None or isinstance(leaf, bool | int | str):
        return {"value": leaf}
    if isinstance(leaf, float):
        return {"value": leaf} if math.isfinite(leaf) else {"float": repr(leaf)}
    if isinstance(leaf, torch.dtype | torch.device):
        return {type(leaf).__name__: str(leaf).removeprefix("torch.")}
    raise TypeError(f"a {type(leaf).__name__} is neither a tensor nor a plain value")


def _restore(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = described.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "value":
            return value
        case "float":
            return float(value)
        case "dtype":
            return getattr(torch, value)
        case "device":
            return torch.device(value)
    raise ValueError(f"a leaf of the unknown kind {kind!r}")
