"""What a model returns, in containers that a stored program can name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.capture.trees import flatten_outputs


def plain(outputs: Any) -> Any:
    """The outputs with a tuple in place of each object or container that no stored program can name."""
    return pytree.tree_map(_opened, outputs, is_leaf=_is_nameless)


def without_names(outputs: Any) -> list[str]:
    """The kinds of objects and containers in the outputs that no stored program can name."""
    found = {type(leaf).__name__ for leaf in pytree.tree_leaves(outputs, is_leaf=_is_nameless) if _is_nameless(leaf) or _is_opaque(leaf)}
    inside = (_children(leaf) for leaf in pytree.tree_leaves(outputs, is_leaf=_is_nameless) if _is_nameless(leaf))
    return sorted(found.union(*map(without_names, inside)))


def output_names(outputs: Any) -> list[str]:
    """A readable name for each tensor of the outputs, in order."""
    return [name for path, leaf in pytree.tree_leaves_with_path(outputs) for name in _names(_name(path), leaf)]


def _opened(leaf: Any) -> Any:
    if _is_nameless(leaf):
        return tuple(map(plain, _children(leaf)))
    return tuple(flatten_outputs(leaf)[0]) if _is_opaque(leaf) else leaf


def _children(container: Any) -> list[Any]:
    return pytree.tree_leaves(container, is_leaf=lambda value: value is not container)


def _is_nameless(value: Any) -> bool:
    """Whether a container is of a type that has no name in stored programs, as a named tuple of the user's."""
    spec = pytree.tree_structure(value, is_leaf=lambda inner: inner is not value)
    if spec.is_leaf():
        return False
    try:
        pytree.treespec_dumps(spec)
    except NotImplementedError:
        return True
    return False


def _is_opaque(leaf: Any) -> bool:
    """Whether a leaf is an object with tensors inside."""
    inside = flatten_outputs(leaf)[0]
    return len(inside) != 1 or inside[0] is not leaf


def _names(name: str, leaf: Any) -> Iterator[str]:
    if isinstance(leaf, Tensor):
        yield name
    elif _is_opaque(leaf):
        yield from (f"{name}_{place}" for place, inner in enumerate(flatten_outputs(leaf)[0]) if isinstance(inner, Tensor))


def _name(path: tuple[Any, ...]) -> str:
    name = re.sub(r"\W+", "_", pytree.keystr(path)).strip("_")
    return name if name and not name[0].isdigit() else f"output_{name}".rstrip("_")
