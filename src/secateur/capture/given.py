"""Capture whatever a person brings: a module, a graph module, an exported program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from secateur.capture.capture import Capture
from secateur.capture.execution import plain_execution
from secateur.capture.export import export, transcribed
from secateur.capture.flat import flatten_inputs
from secateur.capture.inputs import check_model, check_runs, describe_inputs
from secateur.capture.open import record_open
from secateur.capture.record import record
from secateur.capture.trees import copied, flatten_outputs
from secateur.capture.untouched import untouched
from secateur.capture.verify import close_capture
from secateur.errors import CaptureError, ModelError

Way = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Capture]


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    graph: bool = False,
    batch_alone: bool = False,
) -> Capture:
    """Capture a model on example inputs, and leave it as it was.

    A recorded run is fast and takes any control flow; with ``graph`` the result shall be a graph that takes other input sizes
    too (with ``batch_alone``, other batch sizes), so it is recorded at two sizes at once. ``torch.export`` follows if that fails, then
    what is left. An exported program is taken as it is, on its own example inputs if none are given.
    """
    if isinstance(model, ExportedProgram):
        return given(model, args, kwargs)
    check_model(model)
    opened: list[Way] = [partial(record_open, batch_alone=batch_alone), partial(export, dynamic=True, batch_alone=batch_alone), record]
    ways: list[Way] = opened if graph else [record, partial(export, dynamic=False)]
    failures: list[str] = []
    for way in ways:
        try:
            found = way(model, args, dict(kwargs or {}))
        except Exception as error:  # noqa: BLE001 - user code and torch raise anything; if the model is to blame, check_runs says so
            check_runs(model, args, kwargs or {})
            failures.append(str(error))
        else:
            return replace(found, notes=(*failures, *found.notes))
    raise CaptureError("No way of capturing this model worked.\n" + "\n".join(failures))


def given(exported: ExportedProgram, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Capture:
    """Capture an exported program as it stands."""
    if not args and not kwargs:
        args, kwargs = exported.example_inputs or ((), {})
    kwargs = _in_order(exported, dict(kwargs or {}))
    _, in_spec = flatten_inputs(args, kwargs)
    if in_spec != exported.call_spec.in_spec:
        raise ModelError(f"The exported program takes inputs nested as {exported.call_spec.in_spec}, not {describe_inputs(args, kwargs)}.")
    model = exported.module(check_guards=False)
    check_model(model)
    out_spec = exported.call_spec.out_spec
    blank = Capture(fx.GraphModule({}, fx.Graph()), model, args, kwargs, in_spec, out_spec, "given", {})
    return close_capture(transcribed(exported, blank), _outputs(model, args, kwargs))


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    try:
        flat, spec = flatten_inputs(args, kwargs)
        with untouched(model, flat), plain_execution(model, flat):
            run_args, run_kwargs = pytree.tree_unflatten(copied(flat), spec)
            return copied(flatten_outputs(model(*run_args, **run_kwargs))[0])
    except Exception as error:
        raise ModelError(f"The exported program does not run on {describe_inputs(args, kwargs)}: {error}") from error


def _in_order(exported: ExportedProgram, kwargs: dict[str, Any]) -> dict[str, Any]:
    names: list[str] = exported.call_spec.in_spec.child(1).context
    return {name: kwargs[name] for name in names} if set(names) == set(kwargs) else kwargs
