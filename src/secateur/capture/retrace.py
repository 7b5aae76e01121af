"""Trace a model with torch's own tracer, where calls cannot be recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from secateur.capture.capture import Capture
from secateur.capture.execution import plain_execution
from secateur.capture.flat import FlatModel, flatten_inputs, tensors_of
from secateur.capture.leaves import Leaves
from secateur.capture.transcribe import Transcript
from secateur.capture.trees import input_names
from secateur.capture.untouched import untouched
from secateur.capture.verify import check_on, close_capture
from secateur.errors import CaptureError


def retrace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Capture:
    """Capture one forward on real tensors with ``make_fx``; values that Python reads from tensors end it."""
    flat, in_spec = flatten_inputs(args, kwargs)
    leaves = Leaves.of(model)
    run = FlatModel(model, flat, in_spec)
    expected = run.outputs_on(tensors_of(flat))
    out_spec = run.outcome.spec
    with untouched(model, flat), plain_execution(model, flat):
        traced = _trace(run, flat)
    transcript = Transcript(leaves, input_names(args, dict(kwargs)))
    outputs = transcript.write(traced, [node for node, leaf in zip(transcript.inputs, flat, strict=True) if isinstance(leaf, torch.Tensor)])
    program = transcript.finish(outputs, type(model).__name__)
    tied = {**leaves.tied, **{name: (name,) for name in transcript.constants}}
    capture = close_capture(Capture(program, model, args, kwargs, in_spec, out_spec, "trace", tied), expected)
    _check_on_other_values(capture, run)
    return capture


def _check_on_other_values(capture: Capture, run: FlatModel) -> None:
    """Compare on other numbers: the tracer takes what it did not see being computed for a constant."""
    tensors = [x.flip(0) * 0.7 if x.is_floating_point() and x.dim() else x for x in tensors_of(capture.flat_inputs())]
    check_on(capture, tensors, run)


def _trace(run: FlatModel, flat_inputs: list[Any]) -> fx.GraphModule:
    try:
        return make_fx(run.forward, pre_dispatch=True, tracing_mode="real")(*tensors_of(flat_inputs))
    except Exception as error:
        raise CaptureError(f"torch.fx cannot trace the model: {error}") from error
