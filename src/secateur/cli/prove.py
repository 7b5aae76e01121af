"""The command that proves saved files again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from secateur.cli.command import Answer
from secateur.cli.progress import working
from secateur.cli.source import Remembered
from secateur.errors import ProofError
from secateur.export import proven_directory, read_directory
from secateur.rewrite import TOLERANCE, Proof


@dataclass(frozen=True)
class Proving:
    """Proof."""

    tolerance: float = TOLERANCE
    """The largest error that the proof allows, relative to the outputs."""
    recovered: bool = False
    """Weights were meant to change after the cut (training, statistics): list those that did, and prove the rest. Results that know that
    they were recovered need no telling."""


def prove(source: Remembered, proving: Proving) -> Answer:
    """Prove that a saved model equals the masked dense one, or the one with recomposed weights.

    Example: secateur prove out
    """
    saved = read_directory(source.directory)
    recovered = proving.recovered or bool(saved.recovered)
    opened = source.open(saved)
    with working("Proving"):
        try:
            found = proven_directory(
                source.directory,
                opened.model,
                inputs=opened.inputs,
                tolerance=proving.tolerance,
                seed=source.seed,
                recovered=recovered,
                trust_pickle=source.trust_pickle,
            )
        except ProofError as error:
            if not recovered:
                error.args = (
                    f"{error} If weights were meant to change after the cut (recovery, training), prove the rest with --recovered.",
                )
            raise
    told = {"proof": found.proof.to_json() | {"holds": found.proof.holds}, "recovered": list(found.trained)}
    return Answer(list(_lines(found.proof, found.trained, saved.recovered)), told)


def _lines(proof: Proof, changed: Sequence[str], by: Sequence[str]) -> Iterator[Text]:
    yield Text(
        f"Proven equal to {proof.reference}: error {proof.error:.1e}, tolerance {proof.tolerance:.0e}, {proof.dtype}.", style="green"
    )
    for trial in proof.trials:
        yield Text(f"  {trial.inputs}: {trial.error:.1e} of the outputs' scale, {trial.sensitivity:.1e} of their change")
    if changed:
        named = f"{', '.join(changed[:4])}{', ...' if len(changed) > 4 else ''}"
        yield Text(f"{len(changed)} tensors were changed after the cut{f' by {by[-1]}' if by else ''}: {named}")
    yield from (Text(f"note: {note}") for note in proof.notes)
