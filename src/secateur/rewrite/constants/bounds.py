"""Bounds of slices, positions of selections, sizes of splits, and index tables."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import fx

from secateur.capture.normalize.constants import PLIANT
from secateur.rewrite.constants.registry import Site, adjusts


@adjusts("aten.slice", "aten.slice_scatter")
def slice_(site: Site) -> None:
    """Start and end count the positions that stay before them; strided slices of cut dimensions become index tables."""
    fields, shape = site.source()
    dim = site.get("dim") % len(shape)
    if not any(dim in f.dims for f in fields):
        return
    start, end, step = site.get("start"), site.get("end"), site.get("step")
    if any(isinstance(v, fx.Node) for v in (start, end)):
        return
    start, end, _ = slice(start, end, 1).indices(shape[dim])
    if step != 1:
        _strided(site, dim, range(start, end, step))
        return
    site.set("start", site.cut.before(fields, dim, shape[dim], start))
    site.set("end", site.cut.before(fields, dim, shape[dim], max(end, start)))


def _strided(site: Site, dim: int, positions: range) -> None:
    fields, shape = site.source()
    kept = site.cut.along(fields, dim, shape[dim])
    rank = np.cumsum(kept) - 1
    wanted = torch.as_tensor(rank[[p for p in positions if kept[p]]])
    table = site.constant(wanted, "positions")
    site.new.target = torch.ops.aten.index_select.default
    site.new.args, site.new.kwargs = (site.new.args[0], dim, table), {}


@adjusts("aten.select", "aten.select_scatter")
def select(site: Site) -> None:
    """The rank of the selected position among those that stay."""
    fields, shape = site.source()
    dim = site.get("dim") % len(shape)
    if any(dim in f.dims for f in fields):
        index = site.get("index") % shape[dim]
        site.set("index", site.cut.before(fields, dim, shape[dim], index))


@adjusts("aten.split_with_sizes", "aten.split", "aten.chunk", "aten.tensor_split")
def split(site: Site) -> None:
    """Every part has the size that is left of it."""
    fields, shape = site.source()
    dim = site.get("dim") % len(shape)
    if any(dim in f.dims for f in fields):
        ends = accumulate(fact.shape[dim] for fact in site.old.meta["fact"])
        bounds = [0, *(site.cut.before(fields, dim, shape[dim], end) for end in ends)]
        site.new.target = torch.ops.aten.split_with_sizes.default
        site.new.args, site.new.kwargs = (site.new.args[0], [b - a for a, b in pairwise(bounds)], dim), {}


@adjusts("aten.clone")
def left_out(site: Site) -> None:
    """The positions that stay of a tensor that no weight makes."""
    for dim in site.old.meta.get(PLIANT, ()):
        kept = site.cut.along(site.fields, dim, site.dense[dim])
        if not kept.all():
            table = site.constant(torch.as_tensor(np.flatnonzero(kept)), "positions")
            with site.new.graph.inserting_before(site.new):
                source = site.new.graph.call_function(torch.ops.aten.index_select.default, (site.new.args[0], dim, table))
            site.new.update_arg(0, source)


@adjusts("aten.index_select")
def index_select(site: Site) -> None:
    """A constant table of positions, without those that go, counted anew."""
    fields, shape = site.source()
    dim = site.get("dim") % len(shape)
    if not any(dim in f.dims for f in fields):
        return
    table = site.get("index").meta["fact"].value.numpy()
    kept = site.cut.along(fields, dim, shape[dim])
    rank = np.cumsum(kept) - 1
    site.set("index", site.constant(torch.as_tensor(rank[table[kept[table]]]), "positions"))
