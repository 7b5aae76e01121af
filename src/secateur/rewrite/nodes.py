"""Compare a smaller program with the masked dense one node by node: to say where they part, and where outputs say nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx

from secateur.errors import ProofError
from secateur.groups.fields import Fields
from secateur.rewrite.compare import Trial, largest, largest_difference
from secateur.rewrite.cut import Cut
from secateur.rewrite.execute import Double
from secateur.rewrite.leaves import smaller_leaves
from secateur.rewrite.masked import Masked
from secateur.rewrite.perturb import proving_leaves


def compare_nodes(
    cut: Cut, program: fx.GraphModule, flat_inputs: Sequence[Any], dense: Mapping[str, Tensor], small: Mapping[str, Tensor]
) -> Trial:
    """Compare every call that both programs know by name, where the outputs are empty and so say nothing.

    Raises :class:`ProofError` if the programs share less than half of their calls.
    """
    values = _recorded(Masked(cut, dense), flat_inputs)
    found = _recorded(Double(program, small), flat_inputs)
    calls = [n for n in cut.solution.walk.capture.graph.nodes if n.op == "call_function" and _says_something(values.get(n.name))]
    errors = [_node_error(cut, n, values[n.name], found[n.name]) for n in calls if isinstance(found.get(n.name), Tensor)]
    alike = [e for e in errors if e is not None]
    if 2 * len(alike) < len(calls):
        raise ProofError("On these inputs the model returns nothing, so nothing can be compared. Give inputs on which it finds something.")
    worst = max(alike, key=lambda e: math.inf if math.isnan(e) else e)
    return Trial(f"{len(alike)} inner values, since the outputs are empty", worst, worst)


def _says_something(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _node_error(cut: Cut, node: fx.Node, want: Tensor, have: Tensor) -> float | None:
    kept = kept_values(cut, cut.fields(node), want)
    if kept.numel() != have.numel() or not kept.numel():
        return None
    return largest_difference(kept.reshape(-1), have.reshape(-1)) / max(largest(want), 1e-300)


def first_difference(
    cut: Cut, program: fx.GraphModule, flat_inputs: Sequence[Any], seed: int, rename: Mapping[str, str] | None = None
) -> str | None:
    """The first node whose kept values differ between the masked dense graph and a smaller one, by name.

    Only calls that both make under one name are compared, so the smaller graph has to be in the form of the dense one.
    """
    dense, _ = proving_leaves(cut.solution.walk.capture, flat_inputs, seed)
    masked, small = Masked(cut, dense), Double(program, smaller_leaves(cut, dense, program, rename or {}))
    targets = {n.name: n.target for n in program.graph.nodes if n.op == "call_function"}
    values = _recorded(masked, flat_inputs)
    found = _recorded(small, flat_inputs)
    for node in cut.solution.walk.capture.graph.nodes:
        want, have = values.get(node.name), found.get(node.name)
        if targets.get(node.name) == node.target and isinstance(want, Tensor) and isinstance(have, Tensor):
            kept = kept_values(cut, cut.fields(node), want)
            if kept.numel() != have.numel() or largest_difference(kept.reshape(-1), have.reshape(-1)) > 1e-7 * max(largest(want), 1e-300):
                return f"{node.name} ({node.target}, module {node.meta.get('module') or 'root'})"
    return None


def kept_values(cut: Cut, fields: Fields, value: Tensor) -> Tensor:
    """The kept positions of a dense value, one after the other."""
    mask = cut.mask(fields)
    return value if mask is None else value[torch.as_tensor(mask).expand(value.shape)]


def _recorded(run: Double, flat_inputs: Sequence[Any]) -> dict[str, Any]:
    run.garbage_collect_values = False
    with suppress(RuntimeError, ValueError, IndexError):
        run.outputs(flat_inputs)
    return {node.name: value for node, value in run.env.items()}
