"""Proof: the smaller model computes what the dense model computes with the removed channels masked."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from secateur.errors import ProofError
from secateur.rewrite.compare import Trial, compare, depend_on_inputs
from secateur.rewrite.cut import Cut
from secateur.rewrite.execute import Double
from secateur.rewrite.leaves import check_leaves, smaller_leaves
from secateur.rewrite.masked import Masked
from secateur.rewrite.nodes import compare_nodes, first_difference
from secateur.rewrite.perturb import proving_leaves

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart it was."""

    error: float
    """The largest figure of all trials."""
    tolerance: float
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    dtype: str = "float64"
    reference: str = "the masked dense model"
    """What the smaller model was found equal to."""

    @property
    def holds(self) -> bool:
        """Whether the error lies within the tolerance (a NaN does not)."""
        return self.error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The proof as plain values."""
        return asdict(self)


def prove(
    cut: Cut,
    program: fx.GraphModule,
    inputs: Sequence[Sequence[Any]],
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    rename: Mapping[str, str] | None = None,
    named: Callable[[], fx.GraphModule] | None = None,
    rounded: Collection[str] = (),
) -> Proof:
    """Compare a smaller program with the masked dense one, in double precision, on each set of inputs.

    Both run with the dense model's weights after batch norm was calibrated and constant parameters were perturbed, so
    that zeros and ones hide nothing. ``rename`` gives the program's names of stored tensors where they differ. ``named``
    returns the program in the form in which the dense one was analysed: it is taken where values decide on sizes, which
    the recorded calls may repeat, and to compare all inner values where the outputs are empty (a detector that finds nothing).
    Stored tensors must be the very kept parts of the dense ones, those in ``rounded`` but for rounding.
    Raises :class:`ProofError` if they differ by more than ``tolerance``.
    """
    check_leaves(cut, program, rename or {}, rounded)
    proof = _trials(cut, program, inputs, tolerance, seed, rename or {}, named)
    if not proof.holds:
        node = first_difference(cut, named() if named else program, inputs[0], seed, rename)
        place = f"; the first node that differs is {node}" if node else ""
        raise ProofError(
            f"the smaller model differs from the masked dense model by {proof.error:.2e} of the output's scale"
            f" (tolerance {tolerance:.0e}){place}. The result was discarded.",
            node=node,
            error=proof.error,
        )
    return proof


def _trials(
    cut: Cut,
    program: fx.GraphModule,
    inputs: Sequence[Sequence[Any]],
    tolerance: float,
    seed: int,
    rename: Mapping[str, str],
    named: Callable[[], fx.GraphModule] | None,
) -> Proof:
    capture = cut.solution.walk.capture
    if capture.decided and named:
        program = named()
    dense, notes = proving_leaves(capture, inputs[0], seed)
    inputs = [*inputs[:1], *(x for x in inputs[1:] if not capture.decided or _runs(Masked(cut, dense), x))]
    reference = [_outputs(Masked(cut, dense), x) for x in inputs]
    if not is_finite(reference[0]):
        dense, notes = {}, ("perturbed weights gave values that are not finite: the model's own weights were used",)
        reference = [_outputs(Masked(cut, dense), x) for x in inputs]
    if not depend_on_inputs(reference):
        notes += ("the outputs of the masked dense model do not depend on the inputs, so the proof says little of what lies before them",)
    small = smaller_leaves(cut, dense, program, rename)
    trials = []
    for number, flat in enumerate(inputs):
        found = _outputs(Double(program, small), flat)
        other = reference[(number + 1) % len(reference)]
        if not any(isinstance(x, Tensor) and x.numel() for x in reference[number]):
            known = named() if named else program
            trials.append(compare_nodes(cut, known, flat, dense, smaller_leaves(cut, dense, known, rename)))
            continue
        trials.append(compare(reference[number], found, other, "the given inputs" if number == 0 else f"random inputs {number}"))
    return Proof(worst_of(trials), tolerance, tuple(trials), notes)


def _outputs(run: Double, flat: Sequence[Any]) -> tuple[Any, ...]:
    try:
        return run.outputs(flat)
    except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
        raise ProofError(f"the recorded calls do not run in double precision, so nothing can be compared: {error}") from error


def _runs(run: Double, flat: Sequence[Any]) -> bool:
    """Whether recorded calls take other inputs: where values decide, they may ask for other calls."""
    try:
        run.outputs(flat)
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


def worst_of(trials: Sequence[Trial]) -> float:
    """The largest figure of all trials; NaN is larger than any number."""
    return max((_worse(t) for t in trials), key=lambda e: math.inf if math.isnan(e) else e)


def join_proofs(proofs: Sequence[Proof]) -> Proof:
    """One proof of stages that follow each other, with the trials of all."""
    if len(proofs) == 1:
        return proofs[0]
    trials = tuple(replace(trial, inputs=f"{trial.inputs}, against {proof.reference}") for proof in proofs for trial in proof.trials)
    notes = tuple(dict.fromkeys(note for proof in proofs for note in proof.notes))
    references = tuple(dict.fromkeys(proof.reference for proof in proofs))
    return replace(proofs[0], error=worst_of(trials), trials=trials, notes=notes, reference=", then to ".join(references))


def _worse(trial: Trial) -> float:
    return trial.error if math.isnan(trial.error) else max(trial.error, trial.sensitivity)


def is_finite(outputs: Sequence[Any]) -> bool:
    """Whether all outputs are free of NaN and infinity."""
    return all(bool(torch.isfinite(o).all()) for o in outputs if isinstance(o, Tensor) and o.is_floating_point())
