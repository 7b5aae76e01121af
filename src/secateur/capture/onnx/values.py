"""What flows along the edges of an ONNX graph: tensors, and small arrays of plain numbers such as shapes.

An ONNX file computes shapes with the same operators as everything else. Here such values stay Python numbers (symbolic ones
while torch.export looks on), so that a reshape is a reshape to numbers, and not a look at the values of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 64
"""Integers and truth values of so many elements at most are kept as numbers."""


@dataclass(frozen=True, eq=False)
class Known:
    """An array of Python numbers, some of them perhaps symbolic, of a known ONNX type."""

    array: np.ndarray[Any, Any]
    dtype: torch.dtype

    @classmethod
    def of(cls, values: Any, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> Known:
        """Make one of a number, a nested list or an array of numbers."""
        if isinstance(values, np.ndarray):
            return cls(values, dtype)
        flat = list(values) if isinstance(values, list | tuple) else [values]
        array = np.empty(len(flat), dtype=object)
        for place, value in enumerate(flat):
            array[place] = value
        return cls(array.reshape(shape if shape is not None else (len(flat),) if isinstance(values, list | tuple) else ()), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        shape: tuple[int, ...] = self.array.shape
        return shape

    def numbers(self) -> list[Any]:
        """All elements, flat."""
        return list(self.array.reshape(-1))

    def item(self) -> Any:
        """The one element."""
        (value,) = self.numbers()
        return value

    def map(self, function: Callable[..., Any], *others: Known, dtype: torch.dtype | None = None) -> Known:
        """Apply a function of numbers to the elements of this array and of others, by broadcasting."""
        arrays = np.broadcast_arrays(self.array, *[other.array for other in others])
        values = [function(*each) for each in zip(*[array.reshape(-1) for array in arrays], strict=True)]
        return Known.of(values, dtype or self.dtype, arrays[0].shape)

    def tensor(self, device: torch.device) -> Tensor:
        """The same as a tensor."""
        numbers = self.numbers()
        if all(isinstance(value, bool | int | float) for value in numbers):
            return torch.tensor(numbers, dtype=self.dtype, device=device).reshape(self.shape)
        return torch.stack([torch.full((), value, dtype=self.dtype, device=device) for value in numbers]).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Parts:
    """A sequence of tensors as one value."""

    tensors: tuple[Tensor, ...]


Value = Tensor | Known | Parts
"""A tensor, numbers, or a sequence of tensors."""


def known(tensor: Tensor) -> Known | None:
    """A stored tensor as numbers, if it is small enough: some integers or truth values, or at most one number of any type."""
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    return as_numbers(tensor) if tensor.numel() <= (LONGEST if whole else 1) else None


def as_numbers(tensor: Tensor) -> Known:
    """A stored tensor as numbers."""
    return Known.of(tensor.reshape(-1).tolist(), tensor.dtype, tuple(tensor.shape))


def integers(values: Iterable[Any]) -> list[Any]:
    """Whole numbers, of which torch's symbolic ones stay as they are."""
    return [int(value) if isinstance(value, float | bool | np.generic) else value for value in values]
