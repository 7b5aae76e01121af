"""Layers of the dense model beside what a cut left of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx

from secateur.errors import RewriteError, SelectionError
from secateur.groups.solve import Mask
from secateur.recover.mixture import Mixture
from secateur.recover.readers import Reader, readers, shape
from secateur.recover.recovery import Change, own_tensors
from secateur.recover.regression import Fit, Rows, Sums, fit
from secateur.recover.residual import Residual, other_summand, residual_of
from secateur.rewrite import Cut, Slices

Scope = Literal["readers", "all"]
FEWEST = 1 << 14
"""Rows up to which none are left out."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of the dense model and what is left of it."""

    dense: Reader
    small: Reader
    weight: Tensor
    """Of the smaller program; fitted in place."""
    full: Tensor
    """The dense weight with the rows that are kept."""
    offset: Tensor | None
    """The bias, or the running mean behind, of the smaller program."""
    mean: Tensor | None
    """What the running mean behind is in the dense model."""
    places: Places
    """What of the dense layer's outputs is still made."""
    transform: Mixture | None
    """What makes those outputs of the dense ones, where it is more than to choose among them."""
    inputs: Tensor
    """Kept inputs, for a fit by channels."""
    by_channel: bool
    residual: Residual | None
    positions: int | None = None
    """Positions of each sample that the layer is fitted to; all if ``None``."""

    def thinned(self, evidence: int | None, samples: int) -> Pair:
        """The pair fitted to no more positions of each sample than are needed for so many rows to an input, and :data:`FEWEST` in all."""
        if evidence is None:
            return self
        inputs = len(self.inputs) if self.by_channel else self.small.matrix(self.weight).shape[2]
        rows = max(evidence * inputs, FEWEST)
        return replace(self, positions=-(-rows // max(samples, 1)))

    def target(self, outputs: Tensor, lacking: Tensor | None) -> Tensor:
        """What the smaller layer should put out, from what the dense one does and from what a sum behind it lacks."""
        made = self._channels(outputs.movedim(self.dense.channel_dim, -1)).movedim(-1, self.dense.channel_dim)
        kept = self.places(made, but=self._channel_dim)
        return kept if lacking is None else kept + lacking

    def _channels(self, outputs: Tensor) -> Tensor:
        """The channels that stay, of outputs that have them along the last dimension."""
        if self.transform is not None:
            return self.transform(outputs)
        kept = self.places.kept.get(self._channel_dim)
        return outputs if kept is None else outputs[..., kept.to(outputs.device)]

    @property
    def _channel_dim(self) -> int:
        return self.places.rank + self.dense.channel_dim

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self.small.weight.rpartition(".")[0] or self.small.weight

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that change."""
        return (self.small.weight, *([self.small.offset[1]] if self.small.offset else []))

    def empty(self) -> Sums:
        """Sums of the right shape."""
        if self.by_channel:
            return Sums.zeros(1, len(self.inputs), self.full.shape[1], self.weight.device)
        matrix = self.small.matrix(self.weight)
        return Sums.zeros(matrix.shape[0], matrix.shape[2], matrix.shape[1], self.weight.device)

    def gather(self, rows: Rows, number: int, source: Tensor, inputs: Tensor, outputs: Tensor, lacking: Tensor | None) -> None:
        """Add one batch, with its number: the dense layer's inputs, the small one's, the dense outputs, and what a sum behind lacks."""
        if self.by_channel:
            rows.add(*self.small.points(inputs, source, self.positions, number))
            return
        if self.small.groups > 1:
            for x, (y,) in self.small.rows(inputs, [self.target(outputs, lacking)], self.positions, number):
                rows.add(x, y)
            return
        wanted = [self.places(outputs, but=self._channel_dim), *([] if lacking is None else [lacking])]
        for x, (y, *rest) in self.small.rows(inputs, wanted, self.positions, number):
            rows.add(x, sum(rest, self._channels(y)))

    def settle(self, folds: Sequence[Sums], ridge: float | None, first: float) -> Fit:
        """Fit the weights of the smaller program, with the given ridge or the best one, of which one is tried first."""
        if not sum(f.count for f in folds):
            raise SelectionError("The calibration data hold no samples. An iterator that was read before is empty: give a new one.")
        return (self._by_channel if self.by_channel else self._by_patch)(folds, ridge, first)

    def change(self, found: Fit) -> Change:
        """What a fit did to the layer."""
        return Change(found.before, found.after, f"ridge {found.ridge:g}" + (", by channels" if self.by_channel else ""))

    def _by_patch(self, folds: Sequence[Sums], ridge: float | None, first: float) -> Fit:
        prior = self.small.matrix(self.weight.detach())
        found = fit(folds, prior, self._shift(prior), ridge=ridge, first=first)
        self.weight.copy_(self.small.stored(found.matrix, self.weight))
        self._set_shift(found.shift.flatten())
        return found

    def _by_channel(self, folds: Sequence[Sums], ridge: float | None, first: float) -> Fit:
        prior = torch.zeros(1, self.full.shape[1], len(self.inputs), dtype=folds[0].xx.dtype)
        prior[0, self.inputs, torch.arange(len(self.inputs))] = 1
        shift = prior.new_zeros(1, self.full.shape[1]) if self.offset is not None else None
        found = fit(folds, prior, shift, ridge=ridge, first=first)
        full = self.full.to(found.matrix)
        self.weight.copy_(torch.einsum("oi...,ij->oj...", full, found.matrix[0]))
        own = self._dense_bias
        self._set_shift(full.flatten(2).sum(2) @ found.shift[0] + (0 if own is None else own.to(found.shift)))
        return found

    @property
    def _dense_bias(self) -> Tensor | None:
        return self.offset.detach().clone() if self.small.offset and self.small.offset[0] == "bias" and self.offset is not None else None

    def _shift(self, prior: Tensor) -> Tensor | None:
        if self.offset is None:
            return None
        now = self.offset.detach() if self.mean is None else self.mean - self.offset
        return now.reshape(prior.shape[:2])

    def _set_shift(self, shift: Tensor) -> None:
        if self.offset is not None:
            self.offset.copy_(shift if self.mean is None else self.mean.to(shift) - shift)


def pairs_of(
    cut: Cut, program: fx.GraphModule, scope: Scope, patch_limit: int, transforms: Mapping[str, Tensor]
) -> tuple[list[Pair], dict[str, str]]:
    """The layers in scope that can be fitted, in the order of the graph, and why others cannot."""
    capture, slices = cut.solution.walk.capture, Slices.of(cut)
    dense, refused = readers(capture.graph)
    small, _ = readers(program.graph)
    losing = [n for n in dense if _input_dim(dense[n]) in slices.kept.get(n, {})]
    changed = _changed(cut, [dense[n].node for n in losing])
    behind = [n for n, reader in dense.items() if n in losing or reader.source in changed or _makes_good(reader, changed)]
    pairs, skipped = [], {n: why for n, why in refused.items() if 1 in slices.kept.get(n, {})}
    for name in behind if scope == "all" else losing:
        found = _pair(cut, slices, dense[name], small[name], patch_limit, transforms.get(name))
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            skipped[name] = found
    return pairs, skipped


def _changed(cut: Cut, losing: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes whose kept values a cut may change: all behind a sum over what goes, be it over a layer's inputs or a head's neurons."""
    summed = {node for labels, role, node in cut.solution.ledger.roles if role == "dot" and not cut.keeps(labels).all()}
    renormalised = cut.solution.ledger.renormalising
    changed = set(losing)
    for node in cut.solution.walk.capture.graph.nodes:
        loses = node.name in summed or (node.name in renormalised and cut.touches(cut.fields(node.all_input_nodes[0])))
        if loses or any(n in changed for n in node.all_input_nodes):
            changed.add(node)
    return changed


def _makes_good(reader: Reader, changed: set[fx.Node]) -> bool:
    """Whether a layer's outputs are added to others that the cut changed."""
    found = other_summand(reader.node)
    return found is not None and found[0] in changed


def _input_dim(reader: Reader) -> int:
    return 0 if reader.transposed else 1


@dataclass(frozen=True, eq=False)
class Places:
    """The positions along each dimension of a dense tensor that stay."""

    kept: Mapping[int, Tensor]
    rank: int

    @classmethod
    def of(cls, cut: Cut, node: fx.Node) -> Places:
        """The positions of a node's output; all rows of it must keep the same ones."""
        fields = cut.fields(node)
        masks = {d: cut.along(fields, d, size) for d, size in enumerate(shape(node)) if size > 1}
        return cls({d: _positions(mask, len(mask)) for d, mask in masks.items() if not mask.all()}, len(shape(node)))

    def __call__(self, values: Tensor, *, but: int | None = None) -> Tensor:
        """The part of a tensor that stays; along the dimension ``but`` all of it."""
        for dim, positions in self.kept.items():
            if dim != but:
                # Along the last dimension torch's index_select takes several times as long on a CPU.
                last, where = dim == values.ndim - 1, positions.to(values.device)
                values = values[..., where] if last else values.index_select(dim, where)
        return values


def _pair(cut: Cut, slices: Slices, dense: Reader, small: Reader, patch_limit: int, transform: Tensor | None) -> Pair | str:
    capture, root = cut.solution.walk.capture, small.node.graph.owning_module
    assert root is not None
    tensors = own_tensors(root)
    full, weight = capture.leaf(dense.weight).detach(), tensors[small.weight]
    masks = slices.kept.get(dense.weight, {})
    if "origin" not in small.node.meta:
        return "its outputs are cut along a dimension that its kernel slides over"
    rows = _positions(masks.get(1 - _input_dim(dense)), full.shape[1 - _input_dim(dense)])
    if len(rows) != weight.shape[1 - _input_dim(dense)]:
        return "its outputs go with whole groups of inputs"
    by_channel = transform is None and small.groups == 1 and small.taps > 1 and weight[0].numel() > patch_limit
    if small.matrix(weight).shape[2] > patch_limit and small.groups > 1:
        return f"it has more than {patch_limit} inputs and taps in each of several groups"
    inputs = _positions(masks.get(_input_dim(dense)), full.shape[_input_dim(dense)]) if small.groups == 1 else rows
    offset = tensors[small.offset[1]] if small.offset else None
    is_mean = small.offset is not None and small.offset[0] == "running_mean"
    mean = slices.apply(small.offset[1], capture.leaf(small.offset[1])).detach() if small.offset and is_mean else None
    full, residual = full.index_select(1 - _input_dim(dense), rows), residual_of(cut, dense, small, rows)
    turn = None if transform is None else Mixture.of(transform)
    try:
        places = Places.of(cut, dense.node)
    except RewriteError:
        return "rows of its outputs, as those of heads, keep different positions"
    return Pair(dense, small, weight, full, offset, mean, places, turn, inputs, by_channel, residual)


def _positions(mask: Mask | None, size: int) -> Tensor:
    return torch.arange(size) if mask is None else torch.as_tensor(np.flatnonzero(mask))
