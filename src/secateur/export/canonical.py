"""The program in the few forms of calls that the ONNX exporter translates rightly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from secateur.capture.export import tensor_inputs
from secateur.export.pt2 import Exported

aten = torch.ops.aten


def canonical_program(exported: Exported) -> ExportedProgram:
    """Export once more, as a function of tensors alone, with calls that the ONNX exporter knows well.

    A view becomes a reshape; attention gets four dimensions, and its output lies contiguously in memory.
    """
    module = exported.program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    canonicalise(module)
    free = [exported.open_dims.get(name, ()) for name in tensor_inputs(exported.program)]
    example, tensors = _roomy(exported.inputs, free)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor, dims in zip(tensors, free, strict=True):
        shapes[tensor] = dict.fromkeys(dims, Dim.AUTO)
    function = _Tensors(module, example, exported.program.call_spec.in_spec)
    with torch.no_grad():
        return torch.export.export(function, tuple(tensors), dynamic_shapes=shapes, strict=False)


def _roomy(inputs: Sequence[list[Any]], free: Sequence[Sequence[int]]) -> tuple[list[Any], list[Tensor]]:
    """Inputs whose open sizes are more than 1, which torch.export would take for a constant; the first ones if there are none."""
    both = [(flat, [x.detach().clone() for x in flat if isinstance(x, Tensor)]) for flat in inputs]
    return next((one for one in both if all(x.shape[d] > 1 for x, dims in zip(one[1], free, strict=True) for d in dims)), both[0])


class _Tensors(nn.Module):
    """A module that takes the tensors among its flattened inputs, and returns the tensors among its flattened outputs."""

    def __init__(self, inner: nn.Module, flat: Sequence[Any], spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.inner = inner
        self._flat = [None if isinstance(x, Tensor) else x for x in flat]
        self._places = [place for place, x in enumerate(flat) if isinstance(x, Tensor)]
        self._spec = spec

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the module on these tensors."""
        flat = list(self._flat)
        for place, tensor in zip(self._places, tensors, strict=True):
            flat[place] = tensor
        args, kwargs = pytree.tree_unflatten(flat, self._spec)
        return tuple(x for x in pytree.tree_leaves(self.inner(*args, **kwargs)) if isinstance(x, Tensor))


def canonicalise(module: fx.GraphModule) -> None:
    """Replace views and attentions by canonical calls, in place."""
    for node in list(module.graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.scaled_dot_product_attention.default:
            _attention(module.graph, node)
    module.graph.lint()
    module.recompile()


def _attention(graph: fx.Graph, node: fx.Node) -> None:
    """Give an attention four dimensions, and write its output out in order."""
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node)
    assert isinstance(value, fx.Node)
    rank = query.meta["val"].dim()
    with graph.inserting_before(node):
        if rank != 4:
            lead = [_size(graph, query, d) for d in range(rank - 2)]
            back = [*lead, _size(graph, query, rank - 2), _size(graph, value, rank - 1)]
            mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
            node.args = tuple(_four(graph, x, None) for x in (query, key, value)) + node.args[3:]
            if isinstance(mask, fx.Node) and mask.meta["val"].dim() > 2:
                node.args, node.kwargs = _with_mask(node, _four(graph, mask, lead))
    with graph.inserting_after(node):
        clone = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
    last = clone
    if rank != 4:
        with graph.inserting_after(clone):
            last = graph.call_function(aten.reshape.default, (clone, back))
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not clone)


def _with_mask(node: fx.Node, mask: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(node.args) > 3:
        return (*node.args[:3], mask, *node.args[4:]), dict(node.kwargs)
    return node.args, {**node.kwargs, "attn_mask": mask}


def _four(graph: fx.Graph, x: Any, lead: Sequence[Any] | None) -> fx.Node:
    """A tensor in four dimensions: the leading ones as one, expanded to ``lead`` before."""
    rank = x.meta["val"].dim()
    heads = [_size(graph, x, rank - 3)] if rank > 3 else [1]
    ends = [_size(graph, x, rank - 2), _size(graph, x, rank - 1)]
    if lead is not None and len(lead) == rank - 2 and rank > 3:
        heads = [lead[-1]]
        x = graph.call_function(aten.expand.default, (x, [*lead, *ends]))
    return graph.call_function(aten.reshape.default, (x, [-1, *heads, *ends]))


def _size(graph: fx.Graph, x: Any, dim: int) -> Any:
    size = x.meta["val"].shape[dim]
    return size if isinstance(size, int) else graph.call_function(aten.sym_size.int, (x, dim))
