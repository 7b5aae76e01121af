"""Proof run alone on saved files: they compute what the masked dense model computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from secateur.capture import Capture, record
from secateur.capture.given import given
from secateur.errors import ProofError
from secateur.export.directory import PROGRAM, WEIGHTS, Directory, read_directory
from secateur.export.load import load
from secateur.export.pt2 import read_program
from secateur.export.replay import examples_for, planned_cut
from secateur.export.tensors import read_weights
from secateur.rewrite import TOLERANCE, Cut, Proof, Slices, prove, random_like
from secateur.rewrite.graph import put
from secateur.rewrite.module import tied_names


def prove_directory(
    path: str | os.PathLike[str],
    dense: nn.Module | ExportedProgram,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    trust_pickle: bool = False,
) -> Proof:
    """Prove that a saved directory holds the dense model without the channels that its plan removes.

    ``model.pt2`` (without one, the weights loaded into the dense model's class) is compared with the masked dense model on the
    stored inputs and on random ones, and must hold the weights of ``model.safetensors``. Weights that were trained since are
    named in the proof's notes; the structure is then proven with the dense model's weights in their place.

    Raises:
        ProofError: the files do not follow from the dense model and the plan.
        PlanError: the plan was made for another model.
    """
    directory = read_directory(Path(path))
    cut = planned_cut(directory, dense)
    stored, aliases = read_weights(directory.path / WEIGHTS)
    saved = _saved(directory, dense, trust_pickle)
    names = _names(saved, cut, {**{name: name for name in stored}, **aliases})
    _check_same(saved, stored, aliases)
    trained = _with_dense_weights(saved, cut, names)
    flat = saved.flat_inputs()
    inputs = [flat, random_like(flat, seed + 1)] if len(directory.proof["trials"]) > 1 else [flat]
    proof = prove(cut, saved.program, inputs, tolerance=tolerance, seed=seed, rename=names)
    return replace(proof, notes=(*proof.notes, *_notes(trained)))


def _saved(directory: Directory, dense: nn.Module | ExportedProgram, trust_pickle: bool) -> Capture:
    args, kwargs = examples_for(directory, dense)
    if PROGRAM in directory.left_out:
        return record(load(directory.path, into=dense), args, kwargs)
    return given(read_program(directory.path / PROGRAM, trust_pickle=trust_pickle), args, kwargs)


def _names(saved: Capture, cut: Cut, known: Mapping[str, str]) -> dict[str, str]:
    """The dense capture's name of each tensor of the saved program; constants of the program alone get one that it does not have."""
    tied = tied_names(cut.solution.walk.capture)
    own = [str(node.target) for node in saved.graph.find_nodes(op="get_attr")]
    return {name: tied.get(name, name) if name in known else f"constant {name}" for name in own}


def _check_same(saved: Capture, stored: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    for node in saved.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        want = stored.get(aliases.get(name, name))
        if want is not None and not _equal(want, saved.leaf(name).cpu()):
            raise ProofError(f"{PROGRAM} holds another {name} than {WEIGHTS}: the files do not belong together.", node=node.name)


def _with_dense_weights(saved: Capture, cut: Cut, names: Mapping[str, str]) -> list[str]:
    """Put the kept part of the dense weights where the saved ones differ, and return their names."""
    slices, source = Slices.of(cut), cut.solution.walk.capture
    known = {str(node.target) for node in source.graph.find_nodes(op="get_attr")}
    differing = []
    for node in saved.graph.find_nodes(op="get_attr"):
        name = names[str(node.target)]
        if name not in known or name in differing:
            continue
        want, have = slices.apply(name, source.leaf(name).detach()), saved.leaf(str(node.target))
        if want.shape != have.shape:
            text = f"{node.target} has the shape {tuple(have.shape)}, where the plan leaves {tuple(want.shape)} of the dense model's"
            raise ProofError(f"{text}. The files do not follow from this plan.", node=node.name)
        if not _equal(want, have):
            differing.append(name)
            _replace(saved, str(node.target), want)
    return differing


def _replace(saved: Capture, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module = saved.program.get_submodule(owner)
    parameter = isinstance(getattr(module, last), nn.Parameter)
    delattr(module, last)
    put(saved.program, name, nn.Parameter(value, requires_grad=False) if parameter else value)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def _notes(trained: list[str]) -> tuple[str, ...]:
    if not trained:
        return ()
    named = ", ".join(trained[:8]) + (f", ... ({len(trained)})" if len(trained) > 8 else "")
    return (
        f"weights that differ from the kept part of the dense ones (trained since?), proven with the dense ones in their place: {named}",
    )
