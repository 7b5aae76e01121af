"""Nested inputs and outputs as flat lists, objects that pytree does not know included."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_PLAIN = (Tensor, int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class _Slot:
    """Where a tensor goes in a template."""

    position: int


@dataclass(frozen=True)
class _Template:
    """A copy of a user's object with slots for its tensors."""

    content: Any
    slots: tuple[_Slot, ...]

    def fill(self, tensors: Iterable[Any]) -> Any:
        memo = {id(slot): tensor for slot, tensor in zip(self.slots, tensors, strict=True)}
        return copy.deepcopy(self.content, memo)


@dataclass(frozen=True)
class _Opaque:
    """A user's object that pytree takes for a leaf, taken apart into its tensors and the rest."""

    content: Any


def _take_apart(opaque: _Opaque) -> tuple[list[Any], _Template]:
    tensors = list(_tensors_in(opaque.content, set()))
    slots = tuple(_Slot(position) for position in range(len(tensors)))
    memo: dict[int, Any] = {id(tensor): slot for tensor, slot in zip(tensors, slots, strict=True)}
    return tensors, _Template(copy.deepcopy(opaque.content, memo), slots)


def _put_together(tensors: Iterable[Any], template: _Template) -> Any:
    return template.fill(tensors)


pytree.register_pytree_node(_Opaque, _take_apart, _put_together)


def flatten_outputs(outputs: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """Flatten what a model returns, down to the tensors inside of objects such as caches."""
    leaves, spec = pytree.tree_flatten(pytree.tree_map(_wrap_opaque, outputs))
    return leaves, spec


def copied(leaves: Iterable[Any]) -> list[Any]:
    """Return copies of leaves, so that a run cannot change the originals."""
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf) for leaf in leaves]


def input_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Return a readable name for each leaf of the inputs, in pytree order."""
    paths, _ = pytree.tree_flatten_with_path((args, kwargs))
    return [_identifier(path) for path, _leaf in paths]


def _identifier(path: tuple[Any, ...]) -> str:
    name = re.sub(r"\W+", "_", pytree.keystr(path[1:])).strip("_")
    return f"input_{name}" if not name or name[0].isdigit() else name


def _wrap_opaque(leaf: Any) -> Any:
    return leaf if isinstance(leaf, _PLAIN) else _Opaque(leaf)


def _tensors_in(value: Any, seen: set[int]) -> Iterable[Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors_in(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _tensors_in(vars(value), seen)
