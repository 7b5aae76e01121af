"""Graphs as programs, whose Python code is only written when somebody calls them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn

try:
    from torch.fx._lazy_graph_module import _LazyGraphModule as _Program
except ImportError:  # a private module of torch: without it programs are compiled at once
    _Program = fx.GraphModule  # type: ignore[assignment,misc]


def as_program(root: nn.Module | Mapping[str, Tensor], graph: fx.Graph, name: str = "GraphModule") -> fx.GraphModule:
    """A program of this graph over the tensors of ``root``; interpreters run it without compiling it."""
    return _Program(root if isinstance(root, nn.Module) else dict(root), graph, name)
