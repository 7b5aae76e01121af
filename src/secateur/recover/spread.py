"""How queries, keys and mixed values spread in the dense model, head by head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from secateur.groups.fields import Labels
from secateur.recover.heads import Mixing, Product, laid_out
from secateur.recover.paired import Steps
from secateur.recover.readers import shape
from secateur.rewrite import Cut
from secateur.score.batches import Batch
from secateur.score.products import visible
from secateur.score.ranks import summed


class Spread:
    """Second moments of queries, keys and mixed values, for each head, from the dense model."""

    def __init__(self, cut: Cut, products: Sequence[Product], mixings: Sequence[Mixing]) -> None:
        self._program = cut.solution.walk.capture.program
        self._products, self._mixings = products, mixings
        self._operands = list(_operands(products, mixings))
        self.moments = {(o.node, o.side): torch.zeros(o.heads, o.neurons, o.neurons, dtype=torch.float64) for o in self._operands}

    @property
    def neurons(self) -> int:
        """Neurons of the widest head."""
        return max((operand.neurons for operand in self._operands), default=0)

    @property
    def tokens(self) -> int:
        """Tokens of a batch that each head sees, in the operand that has fewest."""
        return min((math.prod(shape(each.source)) // (each.heads * each.neurons) for each in self._operands), default=0)

    def take(self, batch: Batch) -> None:
        """Add one batch."""
        run = Steps(self._program, batch.leaves)
        wanted: list[Product | Mixing] = [*self._products, *self._mixings]
        by_node: dict[fx.Node, list[Product | Mixing]] = {}
        for each in wanted:
            by_node.setdefault(each.node, []).append(each)
        for node in self._program.graph.nodes:
            if node not in by_node:
                continue
            run.until(node)
            inputs = {n: run.env[n] for n in node.all_input_nodes}
            output = run.step()
            for each in by_node[node]:
                self._add(each, inputs, output, batch)

    def share(self) -> None:
        """Add the other processes' moments."""
        self.moments = {key: summed(moment) for key, moment in self.moments.items()}

    def _add(self, each: Product | Mixing, inputs: Mapping[fx.Node, Tensor], output: Tensor, batch: Batch) -> None:
        if isinstance(each, Mixing):
            self._gram(each.node, 2, output.reshape(-1, *output.shape[-2:]), each.head, batch, None)
            return
        own = each.left.reader.source is each.right.reader.source
        for side, heads in enumerate((each.left, each.right)):
            given = inputs[each.operands[side]]
            seen = visible(each.node, inputs, given) if side == 1 or own else None
            self._gram(each.node, side, laid_out(given, each.order[side]), heads.head, batch, seen)

    def _gram(self, node: fx.Node, side: int, values: Tensor, head: Labels, batch: Batch, seen: Tensor | None) -> None:
        valid = max(1, len(values) * batch.valid // batch.size)
        values = values[:valid] if seen is None else values[:valid] * seen[:valid, :, None]
        precise = values if values.dtype == torch.float64 else values.float()
        grams = (precise.mT @ precise).double().cpu() / precise.shape[1]
        self.moments[node, side].index_add_(0, torch.as_tensor(head[:valid]), grams)


@dataclass(frozen=True, eq=False)
class _Operand:
    """Queries, keys or mixed values (0, 1 or 2) of a call."""

    node: fx.Node
    side: int
    source: fx.Node
    heads: int
    neurons: int


def _operands(products: Sequence[Product], mixings: Sequence[Mixing]) -> Iterator[_Operand]:
    for product in products:
        for side, heads in enumerate((product.left, product.right)):
            yield _Operand(product.node, side, product.operands[side], *heads.rows.shape)
    for mix in mixings:
        yield _Operand(mix.node, 2, mix.node, *mix.columns.shape)
