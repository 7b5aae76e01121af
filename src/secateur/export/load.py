"""Open what was saved: in the user's own class, as a graph of layers, or as an exported program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from torch import Tensor, nn
from torch.export import ExportedProgram

from secateur.capture import load_model
from secateur.capture.duplicate import duplicate
from secateur.decompose.spec import base_class
from secateur.errors import FileError, PlanError, UsageError
from secateur.export.directory import PROGRAM, WEIGHTS, Directory, read_directory
from secateur.export.pt2 import read_program
from secateur.export.replay import as_module, check_belongs, planned_model, stages_of
from secateur.export.tensors import read_weights
from secateur.plan import Factorize, Prune
from secateur.rewrite.factorize import unfitting_factor, with_skeletons
from secateur.rewrite.module import set_attributes


def load(path: str | os.PathLike[str], into: nn.Module | ExportedProgram | None = None, *, trust_pickle: bool = False) -> nn.Module:
    """Open a saved directory as a model.

    Args:
        path: the directory, or a ``.pt2`` file alone.
        into: the dense model, freshly built (its weights do not matter; it stays as it is). The result is then of its class, or
            a graph module of ordinary layers, as it was when saved. Without it ``model.pt2`` is opened, for which no code but
            PyTorch is needed.
        trust_pickle: open files that hold pickled objects, which may run any code.

    Raises:
        FileError: a file is missing or damaged.
        PlanError: ``into`` is not the model that the plan was made for.
    """
    where = Path(path)
    if where.is_file():
        if into is not None:
            raise UsageError(f"{where} is one file; 'into' goes with the directory that was saved.")
        return _opened(where, trust_pickle)
    directory = read_directory(where)
    if into is None:
        return _program_of(directory, trust_pickle).module()
    stored, aliases = read_weights(directory.path / WEIGHTS)
    settings_tell = directory.kind == "module" and not _cuts_what_tells_its_widths(directory, as_module(into))
    model = _own_class(directory, into) if settings_tell else planned_model(directory, into, stored.keys())
    put_weights(model, stored, aliases, source=directory.path / WEIGHTS)
    unfitting = unfitting_factor(model, directory.plan.factorizations) if directory.kind == "module" else None
    if unfitting is not None:
        raise FileError(f"{directory.path / WEIGHTS} holds {unfitting} in another shape than the plan beside it gives.")
    return model


def _opened(file: Path, trust_pickle: bool) -> nn.Module:
    if file.suffix == ".pt2":
        return read_program(file, trust_pickle=trust_pickle).module()
    model = load_model(str(file), trust_pickle=trust_pickle)
    assert isinstance(model, nn.Module)
    return model


def _program_of(directory: Directory, trust_pickle: bool) -> ExportedProgram:
    if PROGRAM in directory.left_out:
        missing = f"{directory.path} holds no {PROGRAM}: {directory.left_out[PROGRAM]}"
        raise FileError(f"{missing}. Load it into the dense model's class: load(path, into=build_model()).")
    return read_program(directory.path / PROGRAM, trust_pickle=trust_pickle)


def _cuts_what_tells_its_widths(directory: Directory, dense: nn.Module) -> bool:
    """Whether a layer is factorized after channels went whose weight alone tells its widths, since it is of no class of torch's."""
    modules, pruned = dict(dense.named_modules(remove_duplicate=False)), False
    for _, edits in stages_of(directory):
        layers = [modules.get(edit.layer) for edit in edits if isinstance(edit, Factorize)]
        if pruned and any(layer is not None and base_class(layer) is None for layer in layers):
            return True
        pruned = pruned or any(isinstance(edit, Prune) for edit in edits)
    return False


def _own_class(directory: Directory, into: nn.Module | ExportedProgram) -> nn.Module:
    """A copy of the dense model with the attributes and the factors of the smaller one; tensors are shared until they are replaced."""
    dense = as_module(into)
    check_belongs(directory.plan, dense)
    tensors = chain(dense.parameters(), dense.buffers())
    model = duplicate(dense, {id(tensor): tensor for tensor in tensors})
    try:
        for stage, edits in stages_of(directory):
            set_attributes(model, stage["attributes"])
            with_skeletons(model, [edit for edit in edits if isinstance(edit, Factorize)])
    except AttributeError as error:
        raise PlanError(f"{type(dense).__name__} has no module that the saved attributes belong to: {error}.") from error
    return model


def put_weights(model: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], *, source: Path) -> None:
    """Replace every parameter and buffer by the stored one; names that were tied when saved hold one tensor again."""
    own = dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))
    stored = {name: name if name in tensors else aliases.get(name) for name in own}
    _check_names(model, own, tensors, stored, source)
    made: dict[str | None, Tensor] = {}
    for name, tensor in own.items():
        first = stored[name]
        made[first] = made[first] if first in made else _like(tensor, tensors[str(first)])
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, made[first])


def _like(own: Tensor, stored: Tensor) -> Tensor:
    """The stored values as a parameter or buffer, where and as trainable as the tensor they replace."""
    value = stored.to(own.device)
    if not isinstance(own, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=own.requires_grad and (value.is_floating_point() or value.is_complex()))


def _check_names(
    model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], stored: Mapping[str, str | None], source: Path
) -> None:
    lacking = [f"missing: {name}" for name, first in stored.items() if first is None]
    needless = [f"unknown: {name}" for name in tensors.keys() - set(stored.values())]
    unlike = [
        f"{name} has {tensors[first].dim()} dimensions in the file, {own[name].dim()} in the model"
        for name, first in stored.items()
        if first is not None and tensors[first].dim() != own[name].dim()
    ]
    if lacking or needless or unlike:
        raise FileError("\n  ".join([f"{source} does not fit {type(model).__name__}:", *sorted([*lacking, *needless, *unlike])]))


__all__ = ["load", "put_weights"]
