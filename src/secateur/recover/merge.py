"""Merge instead of drop: what a removed channel gave its readers, its nearest neighbour gives them from now on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from secateur.capture.calls import arguments, leaf, packet
from secateur.groups import ChannelGroup, build_groups
from secateur.recover.readers import Reader, readers
from secateur.recover.recovery import Change, Recovered, own_tensors, stored_tensor, write_back
from secateur.rewrite import Cut, Slices
from secateur.rewrite.computed import computed_value
from secateur.score.batches import Data

By = Literal["distance", "direction"]


@dataclass(frozen=True)
class Merge:
    """Add the outgoing weights of a removed channel to those of the kept channel that is most like it, without data.

        W_:q <- W_:q + a W_:p,        q = argmin_q min_a ||f_p - a f_q||,    a > 0

    with f the filter that makes a channel, batch norm and bias folded in; of several layers that make it, all filters together.
    Where f_p = a f_q, and between filter and reader stand only operators for which f(a z) = a f(z), as ReLU and averages, nothing is
    lost. With ``by="distance"`` the factor is 1. Where no kept filter points in the direction of the removed one, it is dropped. The
    natural companion of :class:`~secateur.GeometricMedian`, which removes what others resemble. Layers that read channels behind
    depthwise convolutions, grouped layers, and products of activations stay as they are.

    Wang et al., Model Folding, ICLR 2025 (clusters, of which this takes the kept filter as the centre).

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     for tensor in model[0].parameters():
        ...         _ = tensor[5].copy_(2 * tensor[1])
        >>> study = sc.study(model, torch.randn(1, 4))
        >>> plan = study.plan(indices={"0": [5]})
        >>> result = sc.apply(study, plan)
        >>> list(Merge()(result.model, study.cut(plan)).changes)
        ['2']
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(result.model(x), model(x), atol=1e-6)
        True
    """

    by: By = "direction"
    """Compare filters up to a positive factor, which the weights then take up, or as they are."""

    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Merge in place."""
        partners, refused = self._partners(cut)
        slices, own, capture = Slices.of(cut), own_tensors(model), cut.solution.walk.capture
        changes, skipped = {}, {}
        for name, reader in readers(capture.graph)[0].items():
            if _input_dim(reader) not in slices.kept.get(name, {}):
                continue
            layer = name.rpartition(".")[0] or name
            found = _added(cut, name, reader, partners) if reader.groups == 1 else "it is grouped"
            if isinstance(found, str):
                skipped[layer] = refused.get(name, found)
                continue
            tensor = stored_tensor(own, name, capture)
            tensor = computed_value(model, name) if tensor is None else tensor
            assert tensor is not None
            write_back({name: tensor + slices.apply(name, found).to(tensor)}, model, capture)
            changes[layer] = Change()
        return Recovered(f"merging removed channels by {self.by}", changes, skipped)

    def _partners(self, cut: Cut) -> tuple[dict[int, tuple[int, float]], dict[str, str]]:
        """For each removed class the kept class that takes its place, with the factor; and why weights read none that do."""
        partners: dict[int, tuple[int, float]] = {}
        refused: dict[str, str] = {}
        for group in build_groups(cut.solution):
            dead = cut.dead[group.classes]
            if group.kind != "channels" or not dead.any():
                continue
            filters = _filters(cut, group)
            if isinstance(filters, str):
                refused |= {m.tensor: filters for m in group.members if m.role == "reads"}
                continue
            for removed, kept, factor in self._nearest(filters, torch.as_tensor(dead)):
                partners[int(group.classes[removed])] = int(group.classes[kept]), factor
        return partners, refused

    def _nearest(self, filters: Tensor, dead: Tensor) -> Iterator[tuple[int, int, float]]:
        gone, kept = dead.nonzero().flatten(), (~dead).nonzero().flatten()
        products = filters[gone] @ filters[kept].T
        squares = filters[kept].square().sum(1).clamp_min(torch.finfo(filters.dtype).tiny)
        factors = (products / squares).clamp_min(0) if self.by == "direction" else torch.ones_like(products)
        distances = factors.square() * squares - 2 * factors * products
        for place, nearest in enumerate(distances.argmin(1).tolist()):
            factor = float(factors[place, nearest])
            if factor > 0:
                yield int(gone[place]), int(kept[nearest]), factor


def _input_dim(reader: Reader) -> int:
    return 0 if reader.transposed else 1


def _filters(cut: Cut, group: ChannelGroup) -> Tensor | str:
    """What makes each channel, norms and biases folded in: ``(size, elements)``; or why that is not all there is to it."""
    capture = cut.solution.walk.capture
    between = [m.tensor for m in group.members if m.role == "carries" and sum(n > 1 for n in capture.leaf(m.tensor).shape) > 1]
    if between:
        return f"{between[0]} acts on its inputs, channel by channel"
    made = {reader.weight: reader for reader in readers(capture.graph)[0].values()}
    parts = []
    for member in group.writers:
        if member.tensor not in made:
            continue
        scale, shift = _folded(cut, made[member.tensor])
        positions, channels = torch.as_tensor(member.positions), torch.as_tensor(member.channels)
        rows = member.flatten(capture.leaf(member.tensor).detach()).double().cpu() * scale[positions].unsqueeze(1)
        part = torch.zeros(group.size, rows.shape[1] + 1, dtype=torch.float64)
        part[channels] = torch.cat([rows, shift[positions].unsqueeze(1)], 1)
        parts.append(part)
    return torch.cat(parts, 1) if parts else "no filters are known that make its inputs"


def _folded(cut: Cut, reader: Reader) -> tuple[Tensor, Tensor]:
    """The factor on each output of a layer, and what is added to it: by its bias, and by a batch norm right behind."""
    capture = cut.solution.walk.capture

    def stored(value: object) -> Tensor | None:
        name = leaf(value)
        return None if name is None else capture.leaf(name).detach().double().cpu()

    size = capture.leaf(reader.weight).shape[1 if reader.transposed else 0]
    bias = stored(arguments(reader.node).get("bias", arguments(reader.node).get("self")))
    scale, shift = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64) if bias is None else bias
    norm = _norm_behind(reader.node)
    if norm is None:
        return scale, shift
    given = arguments(norm)
    mean, variance, gamma, beta = (stored(given[key]) for key in ("running_mean", "running_var", "weight", "bias"))
    if mean is None or variance is None:
        return scale, shift
    scale = (variance + given["eps"]).rsqrt() * (1 if gamma is None else gamma)
    return scale, (shift - mean) * scale + (0 if beta is None else beta)


def _norm_behind(node: fx.Node) -> fx.Node | None:
    behind = next(iter(node.users)) if len(node.users) == 1 else None
    return behind if behind is not None and packet(behind) == "aten.batch_norm" and not arguments(behind)["training"] else None


def _added(cut: Cut, name: str, reader: Reader, partners: Mapping[int, tuple[int, float]]) -> Tensor | str:
    """What is added to a dense weight: columns of removed inputs, at the places of those that stand for them."""
    solution = cut.solution
    labels = solution.slot_labels[name, _input_dim(reader)].ravel()
    classes, stays = solution.classes[labels], cut.keeps(labels)
    weight = solution.walk.capture.leaf(name).detach()
    places: dict[int, list[int]] = {}
    for place in np.flatnonzero(stays).tolist():
        places.setdefault(int(classes[place]), []).append(place)
    added, moved, seen = torch.zeros_like(weight), 0, dict[int, int]()
    for place in np.flatnonzero(~stays).tolist():
        own = int(classes[place])
        order = seen[own] = seen.get(own, -1) + 1
        partner, factor = partners.get(own, (-1, 0.0))
        if order < len(places.get(partner, ())):
            target = places[partner][order]
            added.select(_input_dim(reader), target).add_(weight.select(_input_dim(reader), place), alpha=factor)
            moved += 1
    return added if moved else "no kept channel is like those that it lost"
