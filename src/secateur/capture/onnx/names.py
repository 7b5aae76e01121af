"""Names for layers and tensors: those of the model that a file was exported from, as far as the file tells."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from secateur.capture.onnx.file import scopes

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def module_path(node: Any, weight: str = "") -> str:
    """Where a node's weights belong: where the weight's own name says, else where the module was that made the node."""
    if weight.endswith(".weight") and _DOTTED.fullmatch(weight):
        return weight.removesuffix(".weight")
    known = scopes(node)
    if len(known) > 1:
        return known[-2] or _plain(node.op_type.lower())
    if node.name.startswith("/"):
        return _from_parts(node.name.split("/")[1:-1]) or _plain(node.op_type.lower())
    return _plain(node.name or node.op_type.lower())


def _from_parts(parts: Sequence[str]) -> str:
    """One path of nested names, of which some repeat what is around them, as in ``layer1/layer1.0/conv1``."""
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(".".join(_plain(each) for each in part.split(".")) for part in path if part)


def _plain(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_") or "value"


def tensor_path(node: Any, name: str) -> str:
    """What to call a stored tensor: by its own name where a person could have written it, else after the node that reads it."""
    if _DOTTED.fullmatch(name) and not name.startswith(("val_", "_val_")):
        return name
    return f"{module_path(node)}.{_plain(node.op_type.lower())}_constant"


def identifiers(names: Sequence[str], prefix: str) -> list[str]:
    """Names as Python writes them, no two alike."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        if not plain or plain[0].isdigit() or keyword.iskeyword(plain):
            plain = f"{prefix}_{plain}".rstrip("_")
        number, candidate = 1, plain
        while candidate in found:
            number, candidate = number + 1, f"{plain}_{number + 1}"
        found.append(candidate)
    return found


def free_path(root: nn.Module, path: str) -> str:
    """A path at which nothing is yet, neither under a layer nor with a name that modules have of their own."""
    *around, last = path.split(".")
    owner, safe = root, []
    for name in around:
        while hasattr(owner, name) and type(owner._modules.get(name)) is not nn.Module:
            name += "_"
        safe.append(name)
        owner = owner._modules.get(name) or nn.Module()
    number, candidate = 1, last
    while hasattr(owner, candidate):
        number += 1
        candidate = f"{last}_{number}"
    return ".".join([*safe, candidate])


def put(root: nn.Module, path: str, value: Any) -> None:
    """Set a module, a parameter or a buffer at a path, with plain modules around it."""
    *around, last = path.split(".")
    owner: nn.Module = root
    for name in around:
        if name not in owner._modules:
            owner.add_module(name, nn.Module())
        owner = owner.get_submodule(name)
    if isinstance(value, nn.Module | nn.Parameter):
        setattr(owner, last, value)
    else:
        owner.register_buffer(last, value)
