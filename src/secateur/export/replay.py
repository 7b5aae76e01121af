"""Do to a dense model again what a plan did to it, whatever its weights are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from secateur.capture import Capture, capture
from secateur.capture.normalize import normalize
from secateur.capture.normalize.weights import weight_name
from secateur.errors import FileError, PlanError
from secateur.export.directory import Directory
from secateur.groups import build_groups, solve, walk
from secateur.plan import Edit, Factorize, Plan, Prune, fingerprint
from secateur.rewrite import Cut, transfer
from secateur.rewrite.factorize import with_skeletons
from secateur.rewrite.graph import rewrite_graph
from secateur.rewrite.module import shrink_module
from secateur.rewrite.planned import planned_cut
from secateur.rewrite.raising import raise_layers


def check_belongs(plan: Plan, model: nn.Module) -> None:
    """Raise :class:`PlanError` unless the plan was made for a model with these names and shapes."""
    state = model.state_dict(keep_vars=True)
    plan.check(fingerprint({name: tuple(t.shape) for name, t in state.items() if isinstance(t, Tensor)}))


def as_module(dense: nn.Module | ExportedProgram) -> nn.Module:
    """A model that was given as a module or an exported program, as a module."""
    return dense.module(check_guards=False) if isinstance(dense, ExportedProgram) else dense


def examples_for(directory: Directory, dense: nn.Module | ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The stored example inputs, on the device of the dense model."""
    tensors = dense.state_dict if isinstance(dense, ExportedProgram) else dense.state_dict()
    device = next((tensor.device for tensor in tensors.values() if isinstance(tensor, Tensor)), torch.device("cpu"))
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), directory.examples())
    return args, kwargs


def stages_of(directory: Directory) -> list[tuple[Mapping[str, Any], tuple[Edit, ...]]]:
    """The runs of edits of a directory's plan, each with what was saved of it; :class:`FileError` if they do not go together."""
    runs: tuple[tuple[Edit, ...], ...] = directory.plan.stages or ((),)
    if len(runs) != len(directory.stages):
        raise FileError(f"{directory.path} is damaged: its plan has {len(runs)} stages, and {len(directory.stages)} were saved.")
    return list(zip(directory.stages, runs, strict=True))


def final_cut(source: Capture, edits: Sequence[Edit], kind: str) -> Cut:
    """The cut that edits ask for, in the capture from which a result of this kind is made."""
    solution = solve(walk(source))
    cut = planned_cut(solution, build_groups(solution), [edit for edit in edits if isinstance(edit, Prune)])
    if kind == "module" or source.how == "given":
        return cut
    return transfer(cut, solve(walk(normalize(capture(source.model, source.args, dict(source.kwargs), graph=True)))))


def planned_model(directory: Directory, dense: nn.Module | ExportedProgram, stored: Collection[str]) -> nn.Module:
    """The smaller model that the directory's plan makes of a dense one, run on the stored inputs, with values that are to be loaded.

    The names of the tensors in ``stored`` say which layers compute their weights.
    """
    check_belongs(directory.plan, as_module(dense))
    args, kwargs = examples_for(directory, dense)
    computed = {weight_name(name, stored) for name in stored}
    model: nn.Module | ExportedProgram = dense
    for stage, edits in stages_of(directory):
        factors = [edit for edit in edits if isinstance(edit, Factorize)]
        source = normalize(capture(model, args, kwargs))
        if stage["kind"] == "graph":
            cut = final_cut(source, edits, "graph")
            model = raise_layers(rewrite_graph(cut), cut.solution.walk.capture, computed)
        else:
            model = _smaller_class(source, edits, stage["attributes"])
        with_skeletons(model, factors)
    return as_module(model)


def _smaller_class(source: Capture, edits: Sequence[Edit], attributes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    model = shrink_module(source.model, final_cut(source, edits, "module"), {path: dict(values) for path, values in attributes.items()})
    if model is None:
        raise PlanError("The plan cuts tensors that this model does not hold itself.")
    return model
