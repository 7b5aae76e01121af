"""Record a model's ATen calls while it really runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.capture.capture import Capture
from secateur.capture.execution import plain_execution
from secateur.capture.flat import flatten_inputs
from secateur.capture.leaves import Leaves
from secateur.capture.modes import TransformedError, before_dispatch, below_transforms
from secateur.capture.modules import ModulePath, module_path
from secateur.capture.retrace import retrace
from secateur.capture.tape import Tape
from secateur.capture.trees import copied, flatten_outputs, input_names
from secateur.capture.untouched import Keepsakes, untouched
from secateur.capture.values import depends_on_values
from secateur.capture.verify import close_capture

Recording = Callable[[Tape], AbstractContextManager[None]]


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, branches: bool = False) -> Capture:
    """Capture one real forward of the model in eval mode, call by call.

    With ``branches`` the model's own classes are in training mode, and only torch's layers in eval mode.

    Whatever Python decides on the way (branches, loops, ``.item()``) is decided as for these inputs.
    """
    kwargs = dict(kwargs or {})
    if not can_record():
        return retrace(model, args, kwargs)
    try:
        return _recorded(model, args, kwargs, before_dispatch, branches=branches)
    except TransformedError:
        return _recorded(model, args, kwargs, below_transforms, branches=branches)


def _recorded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], recording: Recording, *, branches: bool) -> Capture:
    flat, in_spec = flatten_inputs(args, kwargs)
    leaves = Leaves.of(model)
    with untouched(model, flat, branches=branches) as keepsakes, module_path(model) as path, plain_execution(model, flat):
        tape = Tape(leaves, path, keepsakes)
        copies = copied(flat)
        for name, leaf in zip(input_names(args, kwargs), copies, strict=True):
            tape.placeholder(name, leaf)
        run_args, run_kwargs = pytree.tree_unflatten(copies, in_spec)
        with recording(tape):
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
        with torch.no_grad(), before_dispatch(tape):
            nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1))
    except (ImportError, AttributeError, AssertionError, RuntimeError, TypeError):
        return False
    return [node.target for node in tape.graph.nodes][-1:] == [torch.ops.aten.linear.default]
