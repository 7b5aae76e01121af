"""The command that proves saved files again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.text import Text
from torch import Tensor, nn

from secateur.capture import record
from secateur.cli.command import Answer
from secateur.cli.progress import working
from secateur.cli.source import Remembered
from secateur.export import load, read_directory
from secateur.rewrite import TOLERANCE, Cut, Proof, Slices, random_like
from secateur.rewrite import prove as compare
from secateur.rewrite.module import tied_names
from secateur.study import Study


@dataclass(frozen=True)
class Proving:
    """Proof."""

    tolerance: float = TOLERANCE
    """The largest error that the proof allows, relative to the outputs."""
    recovered: bool = False
    """Weights were meant to change after the cut (training, statistics): list those that did, and prove the rest."""


def prove(source: Remembered, proving: Proving) -> Answer:
    """Prove that a saved model equals the masked dense one.

    Example: secateur prove out
    """
    saved = read_directory(source.directory)
    found = source.open(saved).study()
    cut = found.cut(saved.plan)
    with working("Opening the smaller model"):
        small = load(source.directory, found.model)
    changed = list(_put_back(cut, small)) if proving.recovered else []
    with working("Proving"):
        proof = _proof(found, cut, small, proving.tolerance, source.seed)
    return Answer(list(_lines(proof, changed)), {"proof": proof.to_json() | {"holds": proof.holds}, "recovered": changed})


def _proof(found: Study, cut: Cut, small: nn.Module, tolerance: float, seed: int) -> Proof:
    capture = found.capture
    program = record(small, capture.args, capture.kwargs).program
    flat = capture.flat_inputs()
    inputs = [flat] if _depends_on_values(found) else [flat, random_like(flat, seed + 1)]
    return compare(cut, program, inputs, tolerance=tolerance, seed=seed, rename=tied_names(capture))


def _depends_on_values(found: Study) -> bool:
    """Whether other inputs would take the model on another way, which the captured one does not describe."""
    return any(part in str(node.target) for node in found.capture.graph.nodes for part in ("item", "nonzero", "nms"))


def _put_back(cut: Cut, small: nn.Module) -> Iterator[str]:
    """Give weights that were changed after the cut the dense model's values, and name them."""
    slices, dense = Slices.of(cut), cut.solution.walk.capture.model.state_dict()
    for name, tensor in small.state_dict().items():
        if name not in dense:
            continue
        want: Tensor = slices.apply(name, dense[name])
        if want.shape == tensor.shape and not torch.equal(want, tensor):
            yield name
            tensor.copy_(want)


def _lines(proof: Proof, changed: list[str]) -> Iterator[Text]:
    yield Text(
        f"Proven equal to the masked dense model: error {proof.error:.1e}, tolerance {proof.tolerance:.0e}, {proof.dtype}.", style="green"
    )
    for trial in proof.trials:
        yield Text(f"  {trial.inputs}: {trial.error:.1e} of the outputs' scale, {trial.sensitivity:.1e} of their change")
    if changed:
        yield Text(f"{len(changed)} tensors were changed after the cut: {', '.join(changed[:4])}{', ...' if len(changed) > 4 else ''}")
    yield from (Text(f"note: {note}") for note in proof.notes)
