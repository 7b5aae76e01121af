"""A result as a directory: what is written, and how it is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur import plan
from secateur.capture.leaves import Leaves
from secateur.capture.trees import input_names
from secateur.errors import CaptureError, FileError, PlanError
from secateur.export.inputs import read_inputs, write_inputs
from secateur.export.onnx import PortNames, can_export, write_onnx_as_open_as_can_be
from secateur.export.pt2 import Exported, export_program, write_program
from secateur.export.saved import Saved
from secateur.export.tensors import write_weights
from secateur.export.whole import whole_directory
from secateur.plan import Plan

FORMAT = "secateur-directory/2"
KINDS = ("module", "graph")
WEIGHTS, PLAN, INPUTS, PROGRAM, ONNX = "model.safetensors", plan.FILE, "inputs.safetensors", "model.pt2", "model.onnx"


@dataclass(frozen=True)
class Directory:
    """What a saved directory says of itself; the weights are read by :func:`load`."""

    path: Path
    plan: Plan
    kind: str
    """``module``: the user's own class; ``graph``: a graph module."""
    model_class: str
    stages: tuple[Mapping[str, Any], ...]
    """Of each run of edits of one kind the ``kind`` of model that came out, and the ``attributes`` of its class that follow."""
    tied: Mapping[str, tuple[str, ...]]
    proof: Mapping[str, Any]
    versions: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, Any]]
    """Shape and dtype of each example input, by name."""
    open_sizes: Mapping[str, tuple[int, ...]]
    """Dimensions of the inputs that may vary in ``model.pt2``."""
    notes: tuple[str, ...]
    left_out: Mapping[str, str]
    """Files that are not there, with the reason."""
    recovered: tuple[str, ...] = ()
    """How tensors got new values after their proof."""

    def examples(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example inputs, as ``(args, kwargs)``."""
        if INPUTS in self.left_out:
            raise FileError(f"{self.path} holds no example inputs: {self.left_out[INPUTS]}.")
        return read_inputs(self.path / INPUTS)


def save_directory(
    result: Saved,
    path: Path,
    *,
    reports: Mapping[str, str] | None = None,
    force: bool = False,
    onnx: bool | None = None,
    names: PortNames | None = None,
) -> Path:
    """Write a result into a directory that is there whole or, after any failure, not at all.

    Files that the model itself does not allow (``model.pt2`` of one that torch.export cannot take) are left out, and
    ``left_out`` in ``plan.json`` says why.

    Args:
        reports: text files to write beside, by name.
        force: replace a directory that an earlier save wrote.
        onnx: write ``model.onnx``; by default where the packages for it are installed.
        names: what ``model.onnx`` is to call its inputs and outputs; by default after the parameters of forward.

    Raises:
        FileError: the path is taken, or cannot be written.
        MissingExtraError: ``onnx`` is true and the extra is not installed.
    """
    wanted = can_export(required=onnx is True) if onnx is not False else False
    with whole_directory(Path(path), force=force, mark=PLAN) as fresh:
        left_out: dict[str, str] = {}
        write_weights(result.model, fresh / WEIGHTS)
        _note(left_out, INPUTS, write_inputs(result.args, result.kwargs, fresh / INPUTS))
        exported = _write_program(result, fresh / PROGRAM, left_out)
        notes: tuple[str, ...] = ()
        if wanted:
            absent = left_out.get(PROGRAM), ()
            reason, notes = absent if exported is None else write_onnx_as_open_as_can_be(exported, fresh / ONNX, names=names)
            _note(left_out, ONNX, reason)
        elif onnx is None:
            left_out[ONNX] = "the extra 'onnx' is not installed"
        (fresh / PLAN).write_text(_described(result, exported, notes, left_out), encoding="utf-8")
        for name, text in (reports or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")
    return Path(path)


def _write_program(result: Saved, path: Path, left_out: dict[str, str]) -> Exported | None:
    try:
        exported = export_program(result.model, result.args, result.kwargs)
    except CaptureError as error:
        left_out[path.name] = f"torch.export cannot export this model: {error}"
        return None
    _note(left_out, path.name, write_program(exported.program, path))
    return exported


def _note(left_out: dict[str, str], name: str, reason: str | None) -> None:
    if reason is not None:
        left_out[name] = reason


def _described(result: Saved, exported: Exported | None, notes: Sequence[str], left_out: Mapping[str, str]) -> str:
    kind = type(result.model)
    described = {
        "format": FORMAT,
        "kind": result.kind,
        "model_class": f"{kind.__module__}.{kind.__qualname__}" if result.kind == "module" else "torch.fx.GraphModule",
        "plan": json.loads(result.plan.to_json()),
        "stages": list(result.stages),
        "tied": {first: names for first, names in Leaves.of(result.model).tied.items() if len(names) > 1},
        "proof": result.proof.to_json(),
        "versions": {"secateur": version("secateur"), "torch": torch.__version__, "python": sys.version.split()[0]},
        "inputs": _input_facts(result),
        "open_sizes": {} if exported is None else exported.open_dims,
        "recovered": list(result.recovered),
        "notes": [*result.notes, *(() if exported is None else exported.notes), *notes],
        "left_out": left_out,
    }
    return json.dumps(described, indent=1) + "\n"


def _input_facts(result: Saved) -> dict[str, Any]:
    names = input_names(result.args, dict(result.kwargs))
    leaves = pytree.tree_leaves((result.args, dict(result.kwargs)))
    return {name: _fact(leaf) for name, leaf in zip(names, leaves, strict=True)}


def _fact(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, Tensor):
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
    return {"value": repr(leaf)}


def read_directory(path: Path) -> Directory:
    """Read what a saved directory says of itself; :class:`FileError` if it is missing or damaged."""
    file = Path(path) / PLAN
    if not file.is_file():
        raise FileError(f"{path} is no directory that Secateur saved: there is no {file}.")
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
        return _directory(Path(path), whole)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, PlanError) as error:
        raise FileError(f"{file} is damaged: {type(error).__name__}: {error}. Save the result again.") from error


def _directory(path: Path, whole: Mapping[str, Any]) -> Directory:
    if whole["format"] != FORMAT:
        raise ValueError(f"its format is {whole['format']!r}; this version reads {FORMAT!r}")
    if whole["kind"] not in KINDS:
        raise ValueError(f"it is of the unknown kind {whole['kind']!r}")
    return Directory(
        path=path,
        plan=Plan.from_json(json.dumps(whole["plan"])),
        kind=whole["kind"],
        model_class=str(whole["model_class"]),
        stages=tuple(_stage(stage) for stage in whole["stages"]),
        tied={str(first): tuple(names) for first, names in whole["tied"].items()},
        proof=dict(whole["proof"]),
        versions=dict(whole["versions"]),
        inputs={str(name): dict(fact) for name, fact in whole["inputs"].items()},
        open_sizes={str(name): tuple(dims) for name, dims in whole["open_sizes"].items()},
        notes=tuple(whole["notes"]),
        left_out=dict(whole["left_out"]),
        recovered=tuple(map(str, whole.get("recovered", ()))),
    )


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    if stage["kind"] not in KINDS:
        raise ValueError(f"a stage is of the unknown kind {stage['kind']!r}")
    return {"kind": stage["kind"], "attributes": {str(module): dict(values) for module, values in stage["attributes"].items()}}


__all__ = ["INPUTS", "ONNX", "PLAN", "PROGRAM", "WEIGHTS", "Directory", "read_directory", "save_directory"]
