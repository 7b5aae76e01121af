"""Copies of whole models, and whether copies are equal."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def duplicate(model: Module, memo: MutableMapping[int, Any] | None = None) -> Module:
    """Return a deep copy of a model; ``memo`` says what stands in the copy for some of its objects, by their identity.

    Tensors that a module holds as plain attributes and that were computed, as weights are by ``torch.nn.utils.weight_norm`` and
    ``prune``, are copied without their history, which torch refuses to copy.
    """
    memo = {} if memo is None else dict(memo)
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(model, memo)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape and equal values, NaN to NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def same_but_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of floating-point numbers have one shape and type, and values that a few roundings lie between."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    allowed = 8 * torch.finfo(one.dtype).eps * one.detach().abs().max() if one.numel() else torch.zeros(())
    return bool(((one - other).detach().abs() <= allowed).all())
