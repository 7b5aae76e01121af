"""Proof run alone on saved files: they compute what the masked dense model computes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from secateur.capture import Capture, capture, normalise_inputs, record
from secateur.capture.duplicate import duplicate, same_but_rounding, same_values
from secateur.capture.given import given
from secateur.capture.normalize import normalize
from secateur.capture.normalize.weights import computed_from, folded_names, stand_ins
from secateur.capture.values import depends_on_values
from secateur.errors import ProofError
from secateur.export.directory import PROGRAM, WEIGHTS, Directory, read_directory
from secateur.export.load import load
from secateur.export.pt2 import read_program
from secateur.export.replay import as_module, check_belongs, examples_for, final_cut, stages_of
from secateur.export.tensors import read_weights
from secateur.groups import solve, walk
from secateur.plan import Edit, Factorize
from secateur.rewrite import (
    TOLERANCE,
    Cut,
    Proof,
    Rewritten,
    Slices,
    prove,
    prove_factorized,
    random_like,
    rewrite,
    rewrite_factorized,
)
from secateur.rewrite.apply import Prefer
from secateur.rewrite.graph import put
from secateur.rewrite.module import rebuilt_names, tied_names
from secateur.rewrite.prove import join_proofs


@dataclass(frozen=True)
class Proven:
    """A proof of saved files, and the weights in them that are not the dense model's."""

    proof: Proof
    trained: tuple[str, ...]


def prove_directory(
    path: str | os.PathLike[str],
    dense: nn.Module | ExportedProgram,
    *,
    inputs: Any = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    trust_pickle: bool = False,
) -> Proof:
    """Prove that a saved directory holds the dense model without the channels that its plan removes, and with the factors that it plans.

    ``model.pt2`` (without one, the weights loaded into the dense model's class) is compared with the masked dense model, or with the one
    whose weights are recomposed, on the stored inputs (or ``inputs``) and on random ones, and must hold the weights of
    ``model.safetensors``. Weights that were trained since are named in the proof's notes; the structure is then proven with the same
    values on both sides. Factors that were cut afterwards are no longer whole in the files, so of them the structure is proven alone.

    Raises:
        ProofError: the files do not follow from the dense model and the plan.
        PlanError: the plan was made for another model.
    """
    found = proven_directory(path, dense, inputs=inputs, tolerance=tolerance, seed=seed, trust_pickle=trust_pickle, recovered=True)
    return replace(found.proof, notes=(*found.proof.notes, *_notes(found.trained)))


def proven_directory(
    path: str | os.PathLike[str],
    dense: nn.Module | ExportedProgram,
    *,
    inputs: Any = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    trust_pickle: bool = False,
    recovered: bool = False,
) -> Proven:
    """Prove a directory as :func:`prove_directory` does; unless ``recovered``, weights that were trained since are an error."""
    directory = read_directory(Path(path))
    check_belongs(directory.plan, as_module(dense))
    given_inputs = examples_for(directory, dense) if inputs is None else normalise_inputs(inputs)
    *before, (stage, edits) = stages_of(directory)
    source, proofs = normalize(capture(dense, *given_inputs)), []
    for earlier, run in before:
        done = _again(source, run, earlier["kind"], tolerance, seed)
        proofs.append(done.proof)
        source = normalize(capture(done.model, *given_inputs))
    last = _Last(directory, dense, source, edits, stage["kind"], tolerance, seed, recovered, trust_pickle)
    proof, trained = last.factors() if any(isinstance(edit, Factorize) for edit in edits) else last.channels()
    return Proven(join_proofs([*proofs, proof]), tuple(trained))


def _again(source: Capture, edits: Sequence[Edit], kind: str, tolerance: float, seed: int) -> Rewritten:
    """Make and prove a stage once more; factors that were fitted to data are now to the example inputs, since their structure counts."""
    prefer: Prefer = "graph" if kind == "graph" else "module"
    factors = [edit for edit in edits if isinstance(edit, Factorize)]
    if factors:
        examples = [(source.args, dict(source.kwargs))]
        return rewrite_factorized(solve(walk(source)), factors, lambda: examples, prefer=prefer, tolerance=tolerance, seed=seed)[0]
    return rewrite(final_cut(source, edits, "module"), prefer=prefer, tolerance=tolerance, seed=seed)


@dataclass(frozen=True, eq=False)
class _Last:
    """The last stage: the files, and the model that they were made from by it."""

    directory: Directory
    dense: nn.Module | ExportedProgram
    source: Capture
    edits: Sequence[Edit]
    kind: str
    tolerance: float
    seed: int
    recovered: bool
    trust_pickle: bool

    def channels(self) -> tuple[Proof, list[str]]:
        """The saved program is the masked model."""
        cut = final_cut(self.source, self.edits, self.kind)
        saved, stored, aliases = self._files()
        computed = _computed(cut.solution.walk.capture, () if self.kind == "module" else stored.keys())
        saved = normalize(saved) if computed else saved
        names = _names(saved, self._firsts(cut.solution.walk.capture), {**{name: name for name in (*stored, *computed)}, **aliases})
        refitted = [edit.layer for edit in self.directory.plan.factorizations]
        changed = _with_dense_weights(saved, cut, names, None if self.recovered else refitted)
        inputs = self._inputs(saved)
        proof = prove(cut, saved.program, inputs, tolerance=self.tolerance, seed=self.seed, rename=names, rounded=computed)
        factors = [name for name in changed if any(name.startswith(f"{layer}.") for layer in refitted)]
        notes = ("of factors that were cut the structure is proven, with other values than the saved ones",) if factors else ()
        return replace(proof, notes=(*proof.notes, *notes)), [name for name in changed if name not in factors]

    def factors(self) -> tuple[Proof, list[str]]:
        """The saved program is the model with recomposed weights."""
        layers = [edit.layer for edit in self.edits if isinstance(edit, Factorize)]
        saved, _, aliases = self._files()
        small = load(self.directory.path, into=self.dense)
        model, trained = _with_saved_weights(self.source.model, small, layers) if self.recovered else (self.source.model, [])
        source = replace(self.source, model=model)
        rename = {**aliases, **self._firsts(source)}
        proof = prove_factorized(source, small, saved.program, layers, tolerance=self.tolerance, seed=self.seed, rename=rename)
        return proof, trained

    def _firsts(self, source: Capture) -> dict[str, str]:
        return rebuilt_names(source) if self.kind == "graph" else tied_names(source)

    def _files(self) -> tuple[Capture, Mapping[str, Tensor], Mapping[str, str]]:
        stored, aliases = read_weights(self.directory.path / WEIGHTS)
        saved = _saved(self.directory, self.dense, self.source, self.trust_pickle)
        _check_same(saved, stored, aliases)
        return saved, stored, aliases

    def _inputs(self, saved: Capture) -> list[list[Any]]:
        flat = saved.flat_inputs()
        return [flat] if saved.decided or depends_on_values(saved.graph) else [flat, random_like(flat, self.seed + 1)]


def _computed(source: Capture, stored: Collection[str]) -> list[str]:
    """The weights that the saved model computes: those of the dense model that are not stored."""
    own = stand_ins(source.graph)
    return [name for name in folded_names(source.graph) if name not in stored and own.get(name) not in stored]


def _saved(directory: Directory, dense: nn.Module | ExportedProgram, source: Capture, trust_pickle: bool) -> Capture:
    args, kwargs = source.args, dict(source.kwargs)
    if PROGRAM in directory.left_out:
        return record(load(directory.path, into=dense), args, kwargs)
    return given(read_program(directory.path / PROGRAM, trust_pickle=trust_pickle), args, kwargs)


def _with_saved_weights(dense: nn.Module, small: nn.Module, layers: Sequence[str]) -> tuple[nn.Module, list[str]]:
    """A copy of the dense model with the saved weights wherever they differ outside of factors, and their names."""
    model, saved, changed = duplicate(dense), small.state_dict(), []
    factors = tuple(f"{layer}." for layer in layers)
    for name, tensor in model.state_dict().items():
        have = saved.get(name)
        if have is None or have.shape != tensor.shape or name.startswith(factors) or _equal(tensor, have):
            continue
        changed.append(name)
        tensor.copy_(have)
    return model, changed


def _names(saved: Capture, firsts: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """The dense capture's name of each tensor of the saved program; constants of the program alone get one that it does not have."""
    own = [str(node.target) for node in saved.graph.find_nodes(op="get_attr")]
    return {name: firsts.get(name, name) if name in known else f"constant {name}" for name in own}


def _check_same(saved: Capture, stored: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    for node in saved.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        want = stored.get(aliases.get(name, name))
        if want is not None and not _equal(want, saved.leaf(name).cpu()):
            raise ProofError(f"{PROGRAM} holds another {name} than {WEIGHTS}: the files do not belong together.", node=node.name)


def _with_dense_weights(saved: Capture, cut: Cut, names: Mapping[str, str], within: Sequence[str] | None) -> list[str]:
    """Put the kept part of the dense weights where the saved ones differ, and return their names; ``within`` leaves others as they are."""
    slices, source = Slices.of(cut), cut.solution.walk.capture
    known = {str(node.target): node for node in source.graph.find_nodes(op="get_attr")}
    differing = []
    for node in saved.graph.find_nodes(op="get_attr"):
        name = names[str(node.target)]
        if name not in known or name in differing:
            continue
        want, have = slices.apply(name, source.leaf(name).detach()), saved.leaf(str(node.target))
        if want.shape != have.shape:
            text = f"{node.target} has the shape {tuple(have.shape)}, where the plan leaves {tuple(want.shape)} of the dense model's"
            raise ProofError(f"{text}. The files do not follow from this plan.", node=node.name)
        allowed = within is None or any(name.startswith(f"{layer}.") for layer in within)
        if allowed and not _equal(want, have) and not (computed_from(known[name]) and same_but_rounding(want, have)):
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
    return one.dtype == other.dtype and same_values(one, other)


def _notes(trained: Sequence[str]) -> tuple[str, ...]:
    if not trained:
        return ()
    named = ", ".join(trained[:8]) + (f", ... ({len(trained)})" if len(trained) > 8 else "")
    return (
        f"weights that differ from the kept part of the dense ones (trained since?), proven with the dense ones in their place: {named}",
    )
