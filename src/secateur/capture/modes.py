"""Modes of torch that hand every ATen call of a run to a tape; torch has no public way for the first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.capture.casts import CONVERT, cast_dtype, converts
from secateur.capture.tape import Tape
from secateur.capture.twins import answer, asked
from secateur.errors import CaptureError


class TransformedError(CaptureError):
    """The model differentiates or maps over calls, of which only what they come down to can be recorded."""


@contextmanager
def before_dispatch(tape: Tape) -> Iterator[None]:
    """Record calls as the model makes them, before torch takes them apart."""
    from torch._dispatch.python import enable_pre_dispatch, enable_python_dispatcher

    recorder = _recorder()
    for wrapper in torch._ops._higher_order_ops.values():
        wrapper.python_key_table.setdefault(recorder, functools.partial(_run_wrapper, wrapper))
    with enable_python_dispatcher(), enable_pre_dispatch(), recorder(tape):
        yield


@contextmanager
def below_transforms(tape: Tape) -> Iterator[None]:
    """Record what calls come down to below ``torch.func`` and autograd, so that mapped calls and backward passes show.

    Kernels that hide more than one layer (attention, recurrent layers) are kept off.
    """
    with sdpa_kernel(SDPBackend.MATH), _separate_layers(), _Late(tape):
        yield


@contextmanager
def _separate_layers() -> Iterator[None]:
    """Keep oneDNN off, which runs recurrent layers in one call."""
    before = torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0])  # type: ignore[no-untyped-call]


@functools.cache
def _recorder() -> Any:
    from torch._dispatch.python import no_python_dispatcher
    from torch._subclasses.schema_check_mode import SchemaCheckMode

    class Recorder(SchemaCheckMode):  # type: ignore[no-untyped-call]
        """A mode that hands each call to the tape; torch admits only this base class before dispatch."""

        def __init__(self, tape: Tape) -> None:
            TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
            self.tape = tape

        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            named = dict(kwargs or {})
            if asked(func, args):
                return answer(func, args, named)
            _refuse_transformed(args, named)
            if torch.is_grad_enabled():
                raise TransformedError("The model asks for gradients, whose calculation is out of sight here.")

            def plain(call: Callable[..., Any], *operands: Any, **options: Any) -> Any:
                with no_python_dispatcher():
                    return self.tape.run(call, operands, options)

            if torch._C._is_any_autocast_enabled():
                return _recorded_casting(self.tape, func, args, named, plain)
            return self.tape.call(func, args, named, lambda: plain(func, *args, **named))

    return Recorder


class _Late(TorchDispatchMode):
    """A mode that sees calls after everything else did."""

    supports_higher_order_operators = True

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if isinstance(func, torch._ops.HigherOrderOperator):
            return _run_wrapper(func, self, *args, **named)
        _refuse_transformed(args, named)
        return self.tape.call(func, args, named, lambda: func(*args, **named))


def _run_wrapper(wrapper: torch._ops.HigherOrderOperator, mode: TorchDispatchMode, *args: Any, **kwargs: Any) -> Any:
    """Run what a higher-order operator runs for these values, and record that; of ``cond`` both branches."""
    kernels = wrapper.py_kernels
    key = torch._C.DispatchKey
    kernel = next((kernels[each] for each in (key.CompositeExplicitAutograd, key.CPU, key.CUDA) if each in kernels), None)
    with mode:
        if wrapper is torch.ops.higher_order.cond and isinstance(args[0], Tensor):
            return _either(*args)
        if kernel is None:
            raise CaptureError(f"The model uses {wrapper}, whose inside cannot be recorded.")
        return kernel(*args, **kwargs)


def _either(condition: Tensor, chosen: Callable[..., Any], other: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """What one of two branches returns, as a choice between the values of both."""
    return pytree.tree_map(lambda yes, no: torch.where(condition, yes, no), chosen(*operands), other(*operands))


def _recorded_casting(
    tape: Tape, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], plain: Callable[..., Any]
) -> Any:
    """Record a call under autocast, the conversions that autocast makes in front of it."""
    if func._schema.is_mutable:  # type: ignore[attr-defined]
        return tape.call(func, args, kwargs, lambda: plain(func, *args, **kwargs))
    result = plain(func, *args, **kwargs)
    dtype = cast_dtype(func, args, kwargs, result)

    def cast(value: Any) -> Any:
        if dtype is None or not converts(value, dtype):
            return value
        return tape.call(CONVERT, (value, dtype), {}, lambda: plain(CONVERT, value, dtype))

    args, kwargs = pytree.tree_map(cast, (args, kwargs))
    return tape.call(func, args, kwargs, lambda: result)


def _refuse_transformed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise TransformedError("The model calls torch.func.vmap or grad on what its layers make.")
