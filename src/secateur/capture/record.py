"""Record a model's ATen calls while it really runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture.capture import Capture
from secateur.capture.casts import CONVERT, cast_dtype, converts
from secateur.capture.execution import plain_execution
from secateur.capture.flat import flatten_inputs
from secateur.capture.leaves import Leaves
from secateur.capture.modules import ModulePath, module_path
from secateur.capture.retrace import retrace
from secateur.capture.tape import Tape
from secateur.capture.trees import copied, flatten_outputs, input_names
from secateur.capture.untouched import Keepsakes, untouched
from secateur.capture.values import depends_on_values
from secateur.capture.verify import close_capture
from secateur.errors import CaptureError


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, branches: bool = False) -> Capture:
    """Capture one real forward of the model in eval mode, call by call.

    With ``branches`` the model's own classes are in training mode, and only torch's layers in eval mode.

    Whatever Python decides on the way (branches, loops, ``.item()``) is decided as for these inputs.
    """
    kwargs = dict(kwargs or {})
    if not can_record():
        return retrace(model, args, kwargs)
    flat, in_spec = flatten_inputs(args, kwargs)
    leaves = Leaves.of(model)
    with untouched(model, flat, branches=branches) as keepsakes, module_path(model) as path, plain_execution(model, flat):
        tape = Tape(leaves, path, keepsakes)
        copies = copied(flat)
        for name, leaf in zip(input_names(args, kwargs), copies, strict=True):
            tape.placeholder(name, leaf)
        run_args, run_kwargs = pytree.tree_unflatten(copies, in_spec)
        with _recording(tape):
            outputs = model(*run_args, **run_kwargs)
        out_leaves, out_spec = flatten_outputs(outputs)
        program = tape.finish(model, out_leaves)
        expected = copied(out_leaves)
    tied = {**leaves.tied, **{name: (name,) for name in tape.constants}}
    found = close_capture(Capture(program, model, args, kwargs, in_spec, out_spec, "record", tied), expected)
    return replace(found, decided=depends_on_values(found.graph))


@functools.cache
def can_record() -> bool:
    """Whether the installed torch lets a Python mode see ATen calls before dispatch; it has no public way."""
    tape = Tape(Leaves.of(nn.Module()), ModulePath({}), Keepsakes())
    try:
        with _recording(tape):
            nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1))
    except (ImportError, AttributeError, AssertionError, RuntimeError, TypeError):
        return False
    return [node.target for node in tape.graph.nodes][-1:] == [torch.ops.aten.linear.default]


@contextmanager
def _recording(tape: Tape) -> Iterator[None]:
    from torch._dispatch.python import enable_pre_dispatch, enable_python_dispatcher, no_python_dispatcher
    from torch._subclasses.schema_check_mode import SchemaCheckMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(SchemaCheckMode):  # type: ignore[no-untyped-call]
        """A mode that hands each call to the tape; torch admits only this base class before dispatch."""

        def __init__(self) -> None:
            TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]

        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            named = dict(kwargs or {})
            _refuse_unrecordable(args, named)

            def plain(call: Callable[..., Any], *operands: Any, **options: Any) -> Any:
                with no_python_dispatcher():
                    return call(*operands, **options)

            if torch._C._is_any_autocast_enabled():
                return _recorded_casting(tape, func, args, named, plain)
            return tape.call(func, args, named, lambda: plain(func, *args, **named))

    with enable_python_dispatcher(), enable_pre_dispatch(), Recorder():
        yield


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


def _refuse_unrecordable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise CaptureError("The model calls torch.func.vmap or grad, which a recorded graph cannot show.")
