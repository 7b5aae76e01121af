"""Capture a model with torch.export, its input sizes left open where that works."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, TensorArgument

from secateur.capture.capture import Capture
from secateur.capture.execution import plain_execution
from secateur.capture.flat import PREFIX, FlatModel, flatten_inputs, tensors_of
from secateur.capture.leaves import Leaves
from secateur.capture.limit import time_limit
from secateur.capture.open import CLOSED
from secateur.capture.quietly import quietly
from secateur.capture.sizes import OpenSizes, Place, open_sizes
from secateur.capture.transcribe import Transcript
from secateur.capture.trees import input_names
from secateur.capture.untouched import untouched
from secateur.capture.verify import check_on, close_capture
from secateur.errors import CaptureError

LONGEST_S = 60.0
"""How long torch.export may look for what open input sizes have to fulfil; divisions of them, as in padding, can take it hours."""

LONGEST_IN_DOUBT_S = 20.0
"""The same where the model makes other calls at some sizes."""

Sizes = tuple[dict[int, Any], ...]


@dataclass(frozen=True)
class _Attempt:
    """One way of asking torch.export: with which tensors, and which of their dimensions may vary."""

    what: str
    tensors: list[Tensor]
    sizes: Sizes | None
    needs_batch: bool = False
    seconds: float = math.inf
    """How long it may take."""


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, dynamic: bool, batch_alone: bool = False
) -> Capture:
    """Capture the model with ``torch.export``, in eval mode.

    With ``dynamic``, the batch size and all sizes at which the model makes the same calls are left open if torch.export
    can do so, else (or with ``batch_alone``) the batch size, else none; ``Capture.notes`` says what came of it. The program has
    been compared with the model on the example inputs and, where sizes are open, at others.
    """
    kwargs = dict(kwargs or {})
    flat, in_spec = flatten_inputs(args, kwargs)
    notes: list[str] = []
    run = FlatModel(model, flat, in_spec)
    expected = run.outputs_on(tensors_of(flat))
    blank = Capture(fx.GraphModule({}, fx.Graph()), model, args, kwargs, in_spec, run.outcome.spec, "export", {})
    sizes = open_sizes(run, tensors_of(flat)) if dynamic and not batch_alone else OpenSizes([], [], [])
    for attempt in _attempts(run, tensors_of(flat), sizes, dynamic=dynamic):
        try:
            traced = _traced(run, attempt)
            capture = close_capture(transcribed(traced, blank), expected)
            _check_elsewhere(capture, _open_dims(traced), sizes, run)
        except Exception as error:  # noqa: BLE001 - torch.export fails in many ways, and each only means to try the next one
            notes.append(f"torch.export with {attempt.what}: {_first_line(error)}")
        else:
            return replace(capture, notes=(*notes, *capture.notes, *_closed_notes(sizes, _open_dims(traced))))
    raise CaptureError("torch.export cannot capture the model.\n" + "\n".join(notes))


def transcribed(traced: torch.export.ExportedProgram, capture: Capture) -> Capture:
    """Return ``capture`` with the calls of an exported program as its program."""
    names = input_names(capture.args, dict(capture.kwargs))
    leaves = Leaves.of(capture.model)
    transcript = Transcript(leaves, names, prefix=PREFIX if capture.how == "export" else "")
    flat = capture.flat_inputs()
    takes_all = sum(spec.kind is InputKind.USER_INPUT for spec in _inputs(traced)) == len(flat)
    users = iter([node for node, leaf in zip(transcript.inputs, flat, strict=True) if takes_all or isinstance(leaf, Tensor)])
    operands = [next(users) if spec.kind is InputKind.USER_INPUT else _stored(spec, traced, transcript) for spec in _inputs(traced)]
    results = transcript.write(traced.graph_module, operands)
    kept = [x for x, spec in zip(results, traced.graph_signature.output_specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    program = transcript.finish(kept, type(capture.model).__name__)
    tied = {**leaves.tied, **{name: (name,) for name in transcript.constants}}
    free = _open_dims(traced)
    notes = (*capture.notes, *_size_notes(names, flat, free))
    return replace(capture, program=program, tied=tied, dynamic=any(free), notes=notes)


def _inputs(traced: torch.export.ExportedProgram) -> list[InputSpec]:
    specs: list[InputSpec] = traced.graph_signature.input_specs
    return specs


def _stored(spec: InputSpec, traced: torch.export.ExportedProgram, transcript: Transcript) -> fx.Node:
    name = str(spec.target)
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        return transcript.leaf(name)
    if spec.kind is InputKind.CONSTANT_TENSOR:
        return transcript.constant(traced.constants[name])
    raise CaptureError(f"The exported program takes a {spec.kind.name.lower()}, which a graph of tensors cannot hold.")


def _traced(run: FlatModel, attempt: _Attempt) -> torch.export.ExportedProgram:
    shapes = None if attempt.sizes is None else (attempt.sizes,)
    limit = time_limit(attempt.seconds) if math.isfinite(attempt.seconds) else nullcontext()
    with quietly(), untouched(run, attempt.tensors), plain_execution(run, attempt.tensors), limit:
        traced = torch.export.export(run, tuple(attempt.tensors), dynamic_shapes=shapes, strict=False)
    if attempt.needs_batch and not any(0 in dims for dims in _open_dims(traced)):
        raise CaptureError("the model fixes the batch size")
    return traced


def _attempts(run: FlatModel, tensors: list[Tensor], open_ones: OpenSizes, *, dynamic: bool) -> Iterator[_Attempt]:
    """Yield ways of exporting, the freest first.

    ``torch.export`` takes a size of 1 for a constant, so single examples go in twice where the model runs so.
    """
    ranked, places, seconds = [tensor for tensor in tensors if tensor.dim()], open_ones.places, longest(open_ones)
    if dynamic and ranked:
        doubled = _doubled(run, tensors) if all(tensor.shape[0] == 1 for tensor in ranked) else None
        examples = doubled or tensors
        if places:
            needs_batch = doubled is not None
            yield _Attempt("batch and input sizes free", examples, _sizes(examples, places), needs_batch, seconds)
        yield _Attempt("batch size free", examples, _sizes(examples, []), needs_batch=doubled is not None)
        if places and doubled:
            yield _Attempt("input sizes free", tensors, _sizes(tensors, places), seconds=seconds)
    yield _Attempt("fixed sizes", tensors, None)


def longest(sizes: OpenSizes) -> float:
    """How many seconds torch.export may take with these sizes open."""
    return LONGEST_IN_DOUBT_S if sizes.doubts else LONGEST_S


def _sizes(tensors: Sequence[Tensor], places: Sequence[Place]) -> Sizes:
    """Leave the batch size of each tensor to torch.export, and the sizes at ``places``."""
    free: list[dict[int, Any]] = [{0: Dim.AUTO} if tensor.dim() and tensor.shape[0] > 1 else {} for tensor in tensors]
    for position, dim in places:
        free[position][dim] = Dim.AUTO
    return tuple(free)


def _doubled(run: FlatModel, tensors: list[Tensor]) -> list[Tensor] | None:
    twice = [torch.cat([tensor, tensor]) if tensor.dim() else tensor for tensor in tensors]
    try:
        run.outputs_on(twice)
    except Exception:  # noqa: BLE001 - a model may refuse another batch size in any way it likes
        return None
    return twice


def _open_dims(traced: torch.export.ExportedProgram) -> list[set[int]]:
    """Return which dimensions of each tensor input stayed symbolic."""
    return [set(dims) for dims in open_dims(traced).values()]


def open_dims(program: torch.export.ExportedProgram) -> dict[str, tuple[int, ...]]:
    """Return which dimensions of each tensor that a program takes from its caller may vary, by name and in order."""
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    shapes = {name: nodes[name].meta["val"].shape for name in tensor_inputs(program)}
    return {name: tuple(dim for dim, size in enumerate(shape) if _is_open(size)) for name, shape in shapes.items()}


def tensor_inputs(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of the tensors that a program takes from its caller, in order."""
    specs = [spec.arg for spec in _inputs(program) if spec.kind is InputKind.USER_INPUT]
    return [arg.name for arg in specs if isinstance(arg, TensorArgument)]


def _is_open(size: int | torch.SymInt) -> bool:
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None


def _size_notes(names: Sequence[str], flat_inputs: Sequence[Any], free: Sequence[set[int]]) -> list[str]:
    tensor_names = [name for name, leaf in zip(names, flat_inputs, strict=True) if isinstance(leaf, Tensor)]
    found = [f"{name}{sorted(dims)}" for name, dims in zip(tensor_names, free, strict=True) if dims]
    return [f"torch.export: input dimensions that may vary: {', '.join(found)}" if found else "torch.export: input sizes are fixed"]


def _closed_notes(sizes: OpenSizes, free: Sequence[set[int]]) -> tuple[str, ...]:
    """What a user has to know where the model takes sizes that the program does not."""
    taken = {(position, dim) for position, dims in enumerate(free) for dim in dims}
    return () if taken.issuperset((*sizes.places, *sizes.closed)) else (CLOSED,)


def _check_elsewhere(capture: Capture, free: Sequence[set[int]], sizes: OpenSizes, run: FlatModel) -> None:
    """Compare program and model with one example more, and at other sizes, as far as they are open and the model takes them."""
    tensors = tensors_of(capture.flat_inputs())
    larger = [torch.cat([x, x[:1]]) if 0 in dims else x for x, dims in zip(tensors, free, strict=True)]
    compared = [*((others, False) for others in (larger, *sizes.witnesses)), *((others, True) for others in sizes.doubts)]
    for others, may_refuse in compared:
        if all(_differing_dims(x, y) <= dims for x, y, dims in zip(tensors, others, free, strict=True)):
            check_on(capture, others, run, may_refuse=may_refuse)


def _differing_dims(one: Tensor, other: Tensor) -> set[int]:
    return {dim for dim in range(one.dim()) if one.shape[dim] != other.shape[dim]}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
