"""Do to a dense model again what a plan did to it, whatever its weights are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from secateur.capture import Capture, capture
from secateur.capture.normalize import normalize
from secateur.errors import PlanError
from secateur.export.directory import Directory
from secateur.groups import build_groups, solve, walk
from secateur.plan import Plan, fingerprint
from secateur.rewrite import Cut, transfer
from secateur.rewrite.graph import rewrite_graph
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


def planned_cut(directory: Directory, dense: nn.Module | ExportedProgram) -> Cut:
    """The cut that a directory's plan asks for, in the capture of the dense model from which such a result is made."""
    check_belongs(directory.plan, as_module(dense))
    args, kwargs = examples_for(directory, dense)
    source = normalize(capture(dense, args, kwargs))
    cut = _cut(directory, source)
    if directory.kind == "module" or source.how == "given":
        return cut
    return transfer(cut, solve(walk(normalize(capture(source.model, args, kwargs, graph=True)))))


def planned_graph_module(directory: Directory, dense: nn.Module | ExportedProgram) -> fx.GraphModule:
    """The smaller graph module that the directory's plan makes of a dense model."""
    cut = planned_cut(directory, dense)
    return raise_layers(rewrite_graph(cut), cut.solution.walk.capture)


def _cut(directory: Directory, source: Capture) -> Cut:
    solution = solve(walk(source))
    groups = {group.name: group for group in build_groups(solution)}
    dead = np.zeros(solution.count, dtype=bool)
    for edit in directory.plan.prunes:
        group = groups.get(edit.group)
        if group is None or group.size != edit.size:
            raise PlanError(f"The plan in {directory.path} cuts {edit.group!r} with {edit.size} channels, which this model does not have.")
        dead[group.classes[list(edit.remove)]] = True
    return Cut(solution, dead)
