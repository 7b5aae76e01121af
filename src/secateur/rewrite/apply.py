"""Two outcomes behind one call: the user's class if its forward can hold the smaller tensors, else a graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.capture import Capture, capture, record
from secateur.capture.caches import switches
from secateur.capture.duplicate import duplicate
from secateur.capture.flat import FlatModel, tensors_of
from secateur.capture.normalize import normalize
from secateur.capture.normalize.weights import folded_names
from secateur.capture.program import as_program
from secateur.capture.trees import copied, flatten_outputs
from secateur.capture.verify import check_on
from secateur.errors import CaptureError, ProofError, RewriteError, SecateurError
from secateur.groups import Solution, solve, walk
from secateur.plan import Factorize
from secateur.rewrite.computed import is_computed
from secateur.rewrite.cut import Cut
from secateur.rewrite.factorize import Batches, FactorizedLayer, factorize
from secateur.rewrite.follow import followed
from secateur.rewrite.graph import rewrite_graph
from secateur.rewrite.module import (
    attempted_attributes,
    computed_weights,
    rebuilt_names,
    shrink_module,
    tied_names,
)
from secateur.rewrite.nodes import first_difference
from secateur.rewrite.perturb import random_like
from secateur.rewrite.prove import TOLERANCE, Proof, prove
from secateur.rewrite.raising import raise_layers
from secateur.rewrite.recompose import prove_factorized
from secateur.rewrite.transfer import transfer

RECORDED = "the graph was recorded and may hold for the sizes of these inputs alone"

Prefer = Literal["auto", "module", "graph"]
Kind = Literal["module", "graph"]


@dataclass(frozen=True)
class Rewritten:
    """The smaller model, how it came about, and its proof."""

    model: nn.Module
    kind: Kind
    proof: Proof
    capture: Capture
    """A capture of the smaller model."""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Attributes of the user's class that follow the new sizes."""
    notes: tuple[str, ...] = ()


def rewrite(cut: Cut, *, prefer: Prefer = "auto", tolerance: float = TOLERANCE, seed: int = 0) -> Rewritten:
    """Rewrite the model of a cut, and prove the result equal to the masked dense model.

    With ``prefer="auto"`` the user's class is tried first, then the graph; ``"module"`` and ``"graph"`` allow one alone.
    Raises :class:`ProofError` or :class:`RewriteError` if no result can be proven.
    """
    if prefer == "graph":
        return _as_graph(cut, tolerance, seed, ())
    try:
        return _as_module(cut, tolerance, seed)
    except SecateurError as failure:
        if prefer == "module":
            raise
        try:
            return _as_graph(cut, tolerance, seed, (f"the user's class was not kept: {failure}",))
        except SecateurError as error:
            error.args = (f"{error} The user's class was tried before: {failure}",)
            raise


def rewrite_factorized(
    solution: Solution,
    edits: Sequence[Factorize],
    batches: Batches | None = None,
    *,
    prefer: Prefer = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> tuple[Rewritten, list[FactorizedLayer]]:
    """Put factors in the place of layers, and prove the result equal to the dense model with recomposed weights.

    With ``prefer="auto"`` they go into the user's class; a class that reads the weights of its layers cannot hold them, so then they go
    into a graph. Raises :class:`ProofError` or :class:`RewriteError` if no result can be proven.
    """
    source = solution.walk.capture
    notes: tuple[str, ...] = ()
    if prefer != "graph":
        try:
            return _with_factors(source, edits, batches, tolerance, seed)
        except (RewriteError, ProofError) as error:
            if prefer == "module":
                raise
            notes = (f"the user's class was not kept: {error}",)
    graph = rewrite(Cut(solution, np.zeros(solution.count, dtype=bool)), prefer="graph", tolerance=tolerance, seed=seed)
    done, rows = _with_factors(graph.capture, edits, batches, tolerance, seed)
    return replace(done, kind="graph", notes=(*notes, *graph.notes)), rows


def _with_factors(
    source: Capture, edits: Sequence[Factorize], batches: Batches | None, tolerance: float, seed: int
) -> tuple[Rewritten, list[FactorizedLayer]]:
    model, rows = factorize(source, edits, batches)
    small = _quiet_record(model, source)
    _run_plainly(model, source, "on factors")
    proof = prove_factorized(source, model, small.program, [row.layer for row in rows], tolerance=tolerance, seed=seed)
    return Rewritten(model, "module", proof, small), rows


def _run_plainly(model: nn.Module, source: Capture, how: str) -> Any:
    """What a model returns to its user: with caches and fused kernels, which are off while recording and may want other sizes."""
    args, kwargs = pytree.tree_unflatten(copied(source.flat_inputs()), source.in_spec)
    try:
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return duplicate(model).eval()(*args, **kwargs)
    except Exception as error:
        raise RewriteError(f"the forward of {type(model).__name__} does not run {how}: {_first_line(error)}") from error


def _inputs(source: Capture, seed: int) -> list[list[Any]]:
    flat = source.flat_inputs()
    return [flat, random_like(flat, seed + 1)]


def _as_module(cut: Cut, tolerance: float, seed: int) -> Rewritten:
    """Smaller tensors in the user's class, with the attributes that follow."""
    source = cut.solution.walk.capture
    program = rewrite_graph(cut)
    computed = computed_weights(source.model, cut)
    failure: SecateurError | None = None
    for attributes in attempted_attributes(source.model, cut, program):
        try:
            model = _run(shrink_module(source.model, cut, attributes), source)
            small = _quiet_record(model, source)
            if switches(model.modules()):
                _run_plainly(model, source, "with a cache for its next call")
            inputs = _inputs(source, seed)
            proof = prove(
                followed(cut),
                _normal_form(small) if computed else small.program,
                inputs,
                tolerance=tolerance,
                seed=seed,
                rename=tied_names(source),
                named=partial(_normal_form, small),
                rounded=computed,
            )
        except SecateurError as error:
            failure = failure or error
        else:
            return Rewritten(model, "module", proof, small, attributes, _of_computed(computed))
    raise failure or RewriteError("no attempt was made")


def _of_computed(computed: Sequence[str]) -> tuple[str, ...]:
    if not computed:
        return ()
    return (f"their layers compute {', '.join(computed)}: the kept parts of the dense model's, but for rounding",)


def _normal_form(small: Capture) -> torch.fx.GraphModule:
    """The smaller program in the form in which the dense one was analysed."""
    return normalize(small).program


def _run(model: nn.Module | None, source: Capture) -> nn.Module:
    if model is None:
        raise RewriteError("some smaller tensor is not a parameter or buffer of the user's class")
    return model


def _quiet_record(model: nn.Module, source: Capture) -> Capture:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return record(model, source.args, source.kwargs)
    except Exception as error:
        raise RewriteError(f"the forward of {type(model).__name__} does not run on smaller tensors: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _as_graph(cut: Cut, tolerance: float, seed: int, notes: tuple[str, ...]) -> Rewritten:
    """A graph of ordinary layers, from a capture that leaves input sizes open."""
    cut = _opened(cut, seed)
    wide = cut.solution.walk.capture
    program = rewrite_graph(cut)
    raised = raise_layers(_copied(program), wide)
    small = _quiet_record(raised, wide)
    computed = [name for name in folded_names(wide.graph) if is_computed(raised, name)]
    try:
        proof = prove(
            cut,
            _normal_form(small) if computed else small.program,
            _inputs(wide, seed),
            tolerance=tolerance,
            seed=seed,
            rename=rebuilt_names(wide),
            named=partial(_normal_form, small),
            rounded=computed,
        )
    except ProofError as error:
        if small.decided and not wide.decided:
            raise RewriteError(
                f"A graph of {type(wide.model).__name__} has sizes that follow values; no proof can repeat it. {error}"
            ) from error
        node = first_difference(cut, program, wide.flat_inputs(), seed)
        raise ProofError(f"{error} First node that differs: {node}." if node else str(error), node=node, error=error.error) from error
    return Rewritten(raised, "graph", proof, small, {}, (*notes, *wide.notes, *_left_aside(wide), *_of_computed(computed)))


def _left_aside(source: Capture) -> tuple[str, ...]:
    """What the user's class hands out for its next call, and a graph does not."""
    if source.how == "given" or not switches(source.model.modules()):
        return ()
    found = flatten_outputs(_run_plainly(source.model, source, "with a cache for its next call"))[0]
    left = len(found) - len(source.program.graph.output_node().args[0])  # type: ignore[arg-type]
    return (f"the graph does not return the {left} tensors of the cache that the class hands out for its next call",) if left > 0 else ()


def _opened(cut: Cut, seed: int) -> Cut:
    """The same cut of a capture with open sizes; with fewer open, where channels are coupled otherwise at other sizes."""
    source = cut.solution.walk.capture
    if source.how == "given":
        return cut
    reasons: list[str] = []
    for batch_alone in (False, True):
        wide = normalize(capture(source.model, source.args, dict(source.kwargs), graph=True, batch_alone=batch_alone))
        if wide.how == "record":
            _check_elsewhere(wide, seed)
        try:
            return _transferred(cut, wide, reasons)
        except RewriteError as error:
            if not wide.dynamic:
                raise
            reasons.append(f"{'the batch size' if batch_alone else 'input sizes'} cannot be open, since then {error}")
    return _transferred(cut, source, reasons)


def _transferred(cut: Cut, target: Capture, reasons: Sequence[str]) -> Cut:
    """The same cut of another capture, whose notes say what it does not take."""
    closed = () if target.dynamic or target.how != "record" else (RECORDED,)
    return transfer(cut, solve(walk(replace(target, notes=(*target.notes, *reasons, *closed)))))


def _check_elsewhere(wide: Capture, seed: int) -> None:
    """Raise unless a recorded graph computes what the model computes on inputs of other values too."""
    flat = wide.flat_inputs()
    try:
        if wide.decided:
            raise CaptureError("The model looked at values on the way.")
        for other in (seed + 1, seed + 2):
            check_on(wide, tensors_of(random_like(flat, other)), FlatModel(wide.model, flat, wide.in_spec))
    except CaptureError as error:
        name = type(wide.model).__name__
        raise RewriteError(f"What {name} calls depends on values; a recorded graph of it holds for these inputs alone. {error}") from error


def _copied(program: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same tensors under a graph of its own, so that raising layers leaves the flat one as it is."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in program.graph.nodes:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        copies[node].meta = dict(node.meta)
    return as_program(program, graph)
