"""The result as an ONNX file, checked in ONNX Runtime against PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from secateur.capture.export import tensor_inputs
from secateur.capture.onnx import Session, compare
from secateur.capture.quietly import quietly
from secateur.errors import CaptureError, FileError, MissingExtraError
from secateur.export.canonical import canonical_program
from secateur.export.pt2 import Exported, first_line, with_open_batch
from secateur.rewrite import random_like

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def can_export(*, required: bool) -> bool:
    """Whether the packages for ONNX are installed; if they are ``required`` and are not, :class:`MissingExtraError`."""
    missing = next((name for name in PACKAGES if find_spec(name) is None), None)
    if missing is not None and required:
        raise MissingExtraError(missing, "onnx", "Writing model.onnx")
    return missing is None


@dataclass(frozen=True)
class PortNames:
    """What a file is to call its inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def write_onnx(exported: Exported, path: Path, *, names: PortNames | None = None, seed: int = 0) -> str | None:
    """Write an ONNX file that agrees with PyTorch on fresh inputs of all sizes tried; returns why not if there is none.

    If the exporter fails on the program as it is, or the file disagrees, the program goes in once more in canonical form.
    """
    case = _Case.of(exported, names, seed)
    reasons = []
    for what, form in _forms(exported, case):
        try:
            with quietly():
                _convert(form(), path, case)
                _check(path, case, exported)
        except OSError as error:
            raise FileError(f"Cannot write {path.name}: {error}.") from error
        except Exception as error:  # noqa: BLE001 - the exporter fails in many ways; its reason is handed on
            path.unlink(missing_ok=True)
            reasons.append(f"{what}: {first_line(_origin(error))}")
        else:
            return None
    return "; ".join(reasons)


def write_onnx_as_open_as_can_be(exported: Exported, path: Path, *, names: PortNames | None = None) -> tuple[str | None, tuple[str, ...]]:
    """Write an ONNX file as :func:`write_onnx` does, with only the batch size open where no other file is right.

    Returns why there is none, and what is to be said of the file.
    """
    reason = write_onnx(exported, path, names=names)
    if reason is None:
        return None, ()
    closed = with_open_batch(exported)
    if closed is None or write_onnx(closed, path, names=names) is not None:
        return reason, ()
    return None, (f"{path.name} takes inputs of the example's sizes alone, in batches of any size; with all sizes open, {reason}",)


def _origin(error: BaseException) -> BaseException:
    """What an error was raised from in the end: the exporter wraps errors in pages of advice."""
    return error if error.__cause__ is None else _origin(error.__cause__)


@dataclass(frozen=True, eq=False)
class _Case:
    """Fresh inputs with PyTorch's outputs for them; of both the tensors alone, which is all that ONNX knows."""

    inputs: tuple[list[Tensor], ...]
    outputs: tuple[list[Tensor], ...]
    input_names: list[str]
    output_names: list[str]
    tensors_alone: bool
    """Whether all that the program returns are tensors."""

    @classmethod
    def of(cls, exported: Exported, names: PortNames | None, seed: int) -> _Case:
        module = exported.program.module()
        inputs = [random_like(flat, seed + number) for number, flat in enumerate(exported.inputs)]
        with torch.no_grad():
            calls = [pytree.tree_unflatten(flat, exported.program.call_spec.in_spec) for flat in inputs]
            returned = [pytree.tree_leaves(module(*args, **kwargs)) for args, kwargs in calls]
        given, results = tensor_inputs(exported.program), exported.outputs
        fitting = names is not None and (len(names.inputs), len(names.outputs)) == (len(given), len(results))
        return cls(
            tuple([x for x in flat if isinstance(x, Tensor)] for flat in inputs),
            tuple([leaf for leaf in each if isinstance(leaf, Tensor)] for each in returned),
            list(names.inputs) if names is not None and fitting else given,
            list(names.outputs if names is not None and fitting else results),
            len(results) == len(returned[0]),
        )


def _forms(exported: Exported, case: _Case) -> Iterator[tuple[str, Callable[[], ExportedProgram]]]:
    if case.tensors_alone:
        yield "the ONNX exporter", lambda: exported.program
    yield "the ONNX exporter, given canonical calls", lambda: canonical_program(exported)


def _convert(program: ExportedProgram, path: Path, case: _Case) -> None:
    converted = torch.onnx.export(program, dynamo=True, verbose=False, input_names=case.input_names, output_names=case.output_names)
    assert converted is not None
    _free_names(converted.model.graph)
    converted.save(path)


def _free_names(graph: Any) -> None:
    """Give values inside of a graph other names than its inputs and outputs have: the exporter names ports without looking."""
    ports = {id(value) for value in (*graph.inputs, *graph.outputs)}
    names = {value.name for value in (*graph.inputs, *graph.outputs)}
    taken = names | {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    for value in (value for node in graph for value in node.outputs):
        if id(value) not in ports and value.name in names:
            number = next(n for n in range(2, len(taken) + 3) if f"{value.name}_{n}" not in taken)
            value.name = f"{value.name}_{number}"
            taken.add(value.name)


def _check(path: Path, case: _Case, exported: Exported) -> None:
    """Raise unless ONNX Runtime gives what PyTorch gave, rounding aside where a model makes much of it."""
    session = Session(path)
    for flat, expected in zip(case.inputs, case.outputs, strict=True):
        found = session(dict(zip(case.input_names, flat, strict=True)))
        for place, (name, ours, theirs) in enumerate(zip(case.output_names, found, expected, strict=True)):
            try:
                compare(name, ours, theirs.cpu())
            except CaptureError:
                compare(name, ours, theirs.cpu(), noise=_rounding(exported, flat, theirs, place))


def _rounding(exported: Exported, tensors: list[Tensor], output: Tensor, place: int) -> float:
    """How far an output is from that of the same program in double precision; none where that cannot be told."""
    double = copy.deepcopy(exported.program.module()).double()
    given = iter(x.double() if x.is_floating_point() else x for x in tensors)
    flat = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in exported.inputs[0]]
    args, kwargs = pytree.tree_unflatten(flat, exported.program.call_spec.in_spec)
    try:
        with torch.no_grad():
            leaves = [leaf for leaf in pytree.tree_leaves(double(*args, **kwargs)) if isinstance(leaf, Tensor)]
        return float((leaves[place] - output).abs().max())
    except Exception:  # noqa: BLE001 - a program may insist on its types in any way it likes
        return 0.0
