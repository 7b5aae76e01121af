"""A tensor as it is in two runs at once, at different sizes of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur.capture.live import Live, Script
from secateur.errors import CaptureError

aten = torch.ops.aten


class Twin(Tensor):
    """The tensor ``here`` and its likeness ``there``; sizes that differ between them are live numbers."""

    here: Tensor
    there: Tensor
    script: Script

    @staticmethod
    def __new__(cls, here: Tensor, there: Tensor, script: Script) -> Twin:
        """A tensor without memory of its own."""
        if here.dim() != there.dim() or here.dtype != there.dtype:
            raise CaptureError(f"a tensor of shape {tuple(here.shape)} is one of shape {tuple(there.shape)} at another size of the inputs")
        twin: Twin = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=here.device,
            dispatch_sizes_strides_policy="sizes",
        )
        twin.here, twin.there, twin.script = here, there, script
        return twin

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Tell sizes; all else is for the recorder."""
        if asked(func, args):
            return answer(func, args, kwargs or {})
        raise CaptureError(f"{func} is called where no recorder sees it")

    def sizes(self) -> tuple[Any, ...]:
        """The sizes along all dimensions, live where they differ between the runs."""
        return self._numbers(self.here.shape, self.there.shape, aten.sym_size.int)

    def strides(self) -> tuple[Any, ...]:
        """The steps in memory along all dimensions, live where they differ."""
        return self._numbers(self.here.stride(), self.there.stride(), aten.sym_stride.int)

    def _numbers(self, here: Sequence[int], there: Sequence[int], target: Callable[..., Any]) -> tuple[Any, ...]:
        return tuple(
            a if a == b else Live(self.script, a, b, target, (self, dim)).as_number()
            for dim, (a, b) in enumerate(zip(here, there, strict=True))
        )

    def count(self) -> Any:
        """The number of elements."""
        total: Any = 1
        for size in self.sizes():
            total = total * size
        return total


def asked(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a call asks a twin for what it looks like."""
    return func in _QUESTIONS and isinstance(args[0], Twin)


def answer(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a twin says to such a call."""
    return _QUESTIONS[func](*args, **kwargs)


def _both(twin: Twin, question: Callable[[Tensor], bool]) -> bool:
    """Whether a tensor lies so in memory in both runs: where it does not, torch makes a call that puts it so."""
    return question(twin.here) and question(twin.there)


def _offset(twin: Twin) -> int:
    here, there = twin.here.storage_offset(), twin.there.storage_offset()
    if here != there:
        raise CaptureError(f"a tensor of shape {tuple(twin.here.shape)} begins elsewhere in memory at another size of the inputs")
    return int(here)


def _fixed_sizes(twin: Twin) -> Any:
    raise CaptureError(f"the sizes of a tensor of shape {tuple(twin.here.shape)} are taken for constants")


_QUESTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.sym_size.default: lambda twin: twin.sizes(),
    aten.size.default: _fixed_sizes,
    aten.sym_numel.default: lambda twin: twin.count(),
    aten.dim.default: lambda twin: twin.here.dim(),
    aten.stride.default: _fixed_sizes,
    aten.sym_stride.default: lambda twin: twin.strides(),
    aten.sym_storage_offset.default: _offset,
    aten.is_contiguous.default: lambda twin: _both(twin, Tensor.is_contiguous),
    aten.is_contiguous.memory_format: lambda twin, form: _both(twin, partial(Tensor.is_contiguous, memory_format=form)),
    aten.is_strides_like_format.default: lambda twin, form: _both(twin, lambda x: aten.is_strides_like_format.default(x, form)),
    aten.is_non_overlapping_and_dense.default: lambda twin: _both(twin, aten.is_non_overlapping_and_dense.default),
}
