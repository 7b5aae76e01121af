"""The table of adjustments, and what one is given: a node of the new graph beside the node it was copied from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from secateur.capture.capture import Fact
from secateur.groups.fields import Fields
from secateur.groups.solve import Mask
from secateur.rewrite.cut import Cut

Adjust = Callable[["Site"], None]
_ADJUSTMENTS: dict[str, Adjust] = {}


@dataclass(frozen=True)
class Site:
    """A call in the new graph whose shape constants may have to change, with its original."""

    cut: Cut
    root: nn.Module
    """Where the new graph finds its tensors."""
    old: fx.Node
    new: fx.Node
    numbers: dict[fx.Node, Any]
    """What number nodes of the old graph come to in the new one."""

    @property
    def names(self) -> list[str]:
        """Names of the operator's arguments, in order."""
        assert isinstance(self.old.target, torch._ops.OpOverload)
        return [a.name for a in self.old.target._schema.arguments]

    def get(self, name: str) -> Any:
        """An argument of the old call, or its default."""
        place = self.names.index(name)
        if place < len(self.old.args):
            return self.old.args[place]
        assert isinstance(self.old.target, torch._ops.OpOverload)
        argument = self.old.target._schema.arguments[place]
        return self.old.kwargs.get(name, argument.default_value if argument.has_default_value() else None)

    def set(self, name: str, value: Any) -> None:
        """Write an argument of the new call."""
        place = self.names.index(name)
        if place < len(self.new.args):
            self.new.update_arg(place, value)
        else:
            self.new.update_kwarg(name, value)

    def source(self, name: str = "self") -> tuple[Fields, tuple[int, ...]]:
        """Fields and dense shape of a tensor argument."""
        node = self.get(name)
        fact = node.meta["fact"]
        assert isinstance(fact, Fact)
        return self.cut.fields(node), fact.shape

    @property
    def fields(self) -> Fields:
        """Fields of the one output."""
        return self.cut.fields(self.old)

    @property
    def dense(self) -> tuple[int, ...]:
        """Dense shape of the one output."""
        fact = self.old.meta["fact"]
        assert isinstance(fact, Fact)
        return fact.shape

    @property
    def shape(self) -> tuple[int, ...]:
        """New shape of the one output."""
        return self.cut.node_shape(self.old)

    def size(self, entry: Any, dense: int, wanted: int) -> Any:
        """A size written anew: numbers are replaced, computed sizes corrected only where they come out wrong by themselves."""
        if not isinstance(entry, fx.Node):
            return wanted
        found = self.numbers.get(entry, dense)
        node = next(n for n in self.new.all_input_nodes if n.meta.get("origin") is entry)
        if found == wanted:
            return node
        with self.new.graph.inserting_before(self.new):
            product = self.new.graph.create_node("call_function", operator.mul, (node, wanted), name="resized_product")
            return self.new.graph.create_node("call_function", operator.floordiv, (product, found), name="resized")

    def constant(self, value: Tensor, stem: str) -> fx.Node:
        """Register a constant tensor and return a node that reads it."""
        number = 0
        while hasattr(self.root, f"_{stem}_{number}"):
            number += 1
        self.root.register_buffer(f"_{stem}_{number}", value, persistent=False)
        with self.new.graph.inserting_before(self.new):
            return self.new.graph.get_attr(f"_{stem}_{number}")

    def spread(self, node: Any, dim: int, kept: Mask, rank: int) -> fx.Node:
        """A tensor of so many dimensions with zeros at the positions of one that went."""
        with self.new.graph.inserting_before(self.new):
            pads = [0, 0] * (rank - 1 - dim) + [0, 1]
            padded = self.new.graph.call_function(torch.ops.aten.constant_pad_nd.default, (node, pads))
        places = np.where(kept, np.cumsum(kept) - 1, int(kept.sum()))
        table = self.constant(torch.as_tensor(places), "positions")
        with self.new.graph.inserting_before(self.new):
            return self.new.graph.call_function(torch.ops.aten.index_select.default, (padded, dim, table))

    def select(self, kept: Mapping[int, Mask]) -> None:
        """Let the call make all positions of some dimensions, and the new node take those that stay."""
        tables = {dim: self.constant(torch.as_tensor(np.flatnonzero(mask)), "positions") for dim, mask in kept.items()}
        with self.new.graph.inserting_before(self.new):
            source = self.new.graph.create_node("call_function", self.new.target, self.new.args, self.new.kwargs)
            source.meta["module"] = self.old.meta.get("module", "")
            shape = tuple(self.dense[d] if d in kept else size for d, size in enumerate(self.shape))
            source.meta["fact"] = Fact(shape, self.old.meta["fact"].dtype)
            *others, last = tables
            for dim in others:
                source = self.new.graph.call_function(torch.ops.aten.index_select.default, (source, dim, tables[dim]))
        self.new.target, self.new.args, self.new.kwargs = torch.ops.aten.index_select.default, (source, last, tables[last]), {}


def adjusts(*names: str) -> Callable[[Adjust], Adjust]:
    """Register an adjustment for operators, named ``aten.view.default`` or, for all overloads, ``aten.view``."""

    def register(function: Adjust) -> Adjust:
        for name in names:
            if name in _ADJUSTMENTS:
                raise ValueError(f"{name} has an adjustment already")
            _ADJUSTMENTS[name] = function
        return function

    return register


def adjust(site: Site) -> None:
    """Write the shape constants of one call anew, where its operator has any."""
    target = site.old.target
    if isinstance(target, torch._ops.OpOverload):
        function = _ADJUSTMENTS.get(str(target)) or _ADJUSTMENTS.get(str(target.overloadpacket))
        if function is not None:
            function(site)
