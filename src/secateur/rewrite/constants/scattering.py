"""Numbers to gather and scatter by, which repeat along channels, and the zeros that values are scattered into."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from secateur.groups.rules.scattering import repeated_dims, starts_at_zero
from secateur.rewrite.constants.registry import Site, adjusts

aten = torch.ops.aten


@adjusts(
    *("aten.gather", "aten.take_along_dim", "aten.scatter_add", "aten.scatter_reduce"),
    *("aten.scatter.src", "aten.scatter.reduce", "aten.scatter.value", "aten.scatter.value_reduce"),
)
def numbers(site: Site) -> None:
    """As many repeats as channels stay."""
    name = "index" if "index" in site.names else "indices"
    index = site.get(name)
    place = site.names.index(name)
    repeats = repeated_dims(index)
    site.new.update_arg(place, _narrowed(site, site.new.args[place], [d for d in repeats if d != site.get("dim") % len(site.shape)]))
    if name == "index" and "src" in site.names and starts_at_zero(site.old) and not site.source()[0]:
        site.new.update_arg(0, _narrowed(site, site.new.args[0], range(len(site.shape))))


def _narrowed(site: Site, node: object, dims: Iterable[int]) -> fx.Node:
    assert isinstance(node, fx.Node)
    for dim in dims:
        if site.shape[dim] != site.dense[dim]:
            end = _end(site, node, dim)
            with site.new.graph.inserting_before(site.new):
                node = site.new.graph.call_function(aten.slice.Tensor, (node, dim, 0, end))
    return node


def _end(site: Site, node: fx.Node, dim: int) -> fx.Node | int:
    """The new size: that of the values beside it where those are as wide, so that a size that heads share with an open batch stays open."""
    name = "src" if "src" in site.names else site.names[0]
    values, (_, dense) = site.new.args[site.names.index(name)], site.source(name)
    if values is node or not isinstance(values, fx.Node) or dense[dim] != site.dense[dim]:
        return site.shape[dim]
    with site.new.graph.inserting_before(site.new):
        return site.new.graph.call_function(aten.sym_size.int, (values, dim))
