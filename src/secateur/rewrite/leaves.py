"""The stored tensors of a smaller program beside those of the dense one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, fx

from secateur.capture.capture import Capture
from secateur.capture.duplicate import same_but_rounding, same_values
from secateur.errors import ProofError
from secateur.rewrite.cut import Cut
from secateur.rewrite.slices import Slices


def check_leaves(cut: Cut, program: fx.GraphModule, rename: Mapping[str, str], rounded: Collection[str] = ()) -> None:
    """Every stored tensor of the program is exactly the kept part of the dense one, those in ``rounded`` but for rounding."""
    capture, slices = cut.solution.walk.capture, Slices.of(cut)
    for node in program.graph.find_nodes(op="get_attr"):
        name = rename.get(str(node.target), str(node.target))
        owner, _, last = str(node.target).rpartition(".")
        have = getattr(program.get_submodule(owner), last)
        dense = dense_leaf(capture, name)
        if dense is None:
            continue
        want = slices.apply(name, dense)
        same = same_but_rounding if name in rounded else same_values
        if not same(want, have):
            raise ProofError(f"the tensor {node.target} is not the kept part of the dense model's {name}", node=node.name)


def dense_leaf(capture: Capture, name: str) -> Tensor | None:
    """The stored tensor of that name in the dense capture, if it has one."""
    try:
        return capture.leaf(name)
    except AttributeError:
        return None


def smaller_leaves(cut: Cut, dense: Mapping[str, Tensor], program: fx.GraphModule, rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The kept parts of replaced dense tensors, by the program's names."""
    slices = Slices.of(cut)
    out = {}
    for node in program.graph.find_nodes(op="get_attr"):
        name = rename.get(str(node.target), str(node.target))
        if name in dense:
            out[str(node.target)] = slices.apply(name, dense[name])
    return out
