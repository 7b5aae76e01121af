"""Initial states of recurrent layers, which are as wide as the layers are."""

from __future__ import annotations

import torch
from torch import fx

from secateur.rewrite.constants.registry import Site, adjusts

aten = torch.ops.aten


@adjusts("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
@adjusts("aten.lstm_cell", "aten.gru_cell", "aten.rnn_tanh_cell", "aten.rnn_relu_cell")
def states(site: Site) -> None:
    """Zeros for each unit that stays; states that another layer makes are as wide already."""
    facts, fields = site.old.meta["fact"], site.cut.solution.walk.fields[site.old]
    fact, own = (facts[1], fields[1]) if isinstance(facts, list) else (facts, fields)
    width = site.cut.shape(own, fact.shape)[-1]
    place, last = site.names.index("hx"), len(fact.shape) - 1

    def narrowed(old: fx.Node, new: fx.Node) -> fx.Node:
        if width == fact.shape[-1] or any(last in f.dims for f in site.cut.fields(old)):
            return new
        with site.new.graph.inserting_before(site.new):
            return site.new.graph.call_function(aten.slice.Tensor, (new, last, 0, width))

    olds, news = site.old.args[place], site.new.args[place]
    if isinstance(olds, fx.Node) and isinstance(news, fx.Node):
        site.new.update_arg(place, narrowed(olds, news))
    elif isinstance(olds, list | tuple) and isinstance(news, list | tuple):
        pairs = zip(olds, news, strict=True)
        site.new.update_arg(place, [narrowed(a, b) for a, b in pairs if isinstance(a, fx.Node) and isinstance(b, fx.Node)])
