"""Proof for factors: the model computes what the dense model computes with the weights that the factors recompose to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from secateur.capture import Capture, record
from secateur.capture.duplicate import same_values
from secateur.errors import ProofError
from secateur.rewrite.compare import compare
from secateur.rewrite.execute import Double
from secateur.rewrite.factorize import factor_bias_names, with_recomposed
from secateur.rewrite.module import tied_names
from secateur.rewrite.perturb import perturbed_leaves, random_like
from secateur.rewrite.prove import TOLERANCE, Proof, is_finite, worst_of

REFERENCE = "the dense model with recomposed weights"


def prove_factorized(
    dense: Capture,
    factorized: nn.Module,
    program: fx.GraphModule,
    layers: Sequence[str],
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    rename: Mapping[str, str] | None = None,
) -> Proof:
    """Compare a program of a factorized model, in double precision, with the dense model whose ``layers`` have the recomposed weights.

    The recomposed weights are made from the factors as they are stored. Batch norm is calibrated and constant parameters are perturbed
    in both, as for pruning; every tensor outside the factors must be the dense model's own. ``rename`` gives the program's names of stored
    tensors where they differ. Raises :class:`ProofError` if outputs differ by more than ``tolerance``.
    """
    model, exact = with_recomposed(dense.model, factorized, layers)
    reference = record(model, dense.args, dense.kwargs)
    names = _names(reference, factorized, program, layers, rename or {})
    _check_untouched(dense, program, names, layers)
    flat = reference.flat_inputs()
    inputs = [flat] if reference.decided else [flat, random_like(flat, seed + 1)]
    tied = tied_names(reference)
    own = {tied.get(name, name): value for name, value in exact.items()}
    # Factors keep their values, biases may be perturbed: those of factors and of the reference are the same.
    replaced = {**own, **perturbed_leaves(reference, flat, seed), **{name: value for name, value in own.items() if value.dim() > 1}}
    notes: tuple[str, ...] = ()
    if not is_finite(Double(reference.program, replaced).outputs(flat)):
        replaced, notes = own, ("perturbed weights gave values that are not finite: the model's own weights were used",)
    return _compared(reference, program, replaced, names, inputs, tolerance, notes)


def _names(
    reference: Capture, factorized: nn.Module, program: fx.GraphModule, layers: Sequence[str], rename: Mapping[str, str]
) -> dict[str, str]:
    """The reference's name of each tensor that the program reads, factors left out but for the biases, which are the layers' own."""
    tied, biases = tied_names(reference), factor_bias_names(factorized, layers)
    found = {}
    for node in program.graph.find_nodes(op="get_attr"):
        name = rename.get(str(node.target), str(node.target))
        if name in biases or not any(name.startswith(f"{layer}.") for layer in layers):
            own = biases.get(name, name)
            found[str(node.target)] = tied.get(own, own)
    return found


def _check_untouched(dense: Capture, program: fx.GraphModule, names: Mapping[str, str], layers: Sequence[str]) -> None:
    """Every tensor outside of the factors is the dense model's own."""
    known = dict(dense.model.named_parameters(remove_duplicate=False)) | dict(dense.model.named_buffers(remove_duplicate=False))
    for target, name in names.items():
        owner, _, last = target.rpartition(".")
        have = getattr(program.get_submodule(owner), last)
        if name in known and not any(name.startswith(f"{layer}.") for layer in layers) and not same_values(known[name], have):
            raise ProofError(f"the tensor {target} is not the dense model's {name}")


def _compared(
    reference: Capture,
    program: fx.GraphModule,
    replaced: Mapping[str, Tensor],
    names: Mapping[str, str],
    inputs: Sequence[Sequence[Any]],
    tolerance: float,
    notes: tuple[str, ...],
) -> Proof:
    leaves = {target: replaced[name] for target, name in names.items() if name in replaced}
    wanted = [Double(reference.program, replaced).outputs(flat) for flat in inputs]
    if not any(isinstance(x, Tensor) and x.numel() for x in wanted[0]):
        raise ProofError("On these inputs the model returns nothing, so nothing can be compared. Give inputs on which it finds something.")
    found = [Double(program, leaves).outputs(flat) for flat in inputs]
    trials = tuple(
        compare(wanted[n], found[n], wanted[(n + 1) % len(wanted)], "the given inputs" if n == 0 else f"random inputs {n}")
        for n in range(len(inputs))
    )
    proof = Proof(worst_of(trials), tolerance, trials, notes, reference=REFERENCE)
    if not proof.holds:
        raise ProofError(
            f"the factorized model differs from {REFERENCE} by {proof.error:.2e} of the output's scale (tolerance {tolerance:.0e})."
            " The result was discarded.",
            error=proof.error,
        )
    return proof
