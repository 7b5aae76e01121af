"""What criteria look at: weights, how they are used in the graph, and what calibration saw."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx

from secateur.capture.calls import argument, leaf, packet
from secateur.errors import SelectionError
from secateur.groups.fields import NONE, Labels
from secateur.groups.group import ChannelGroup, Member
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.moments import Expectation

Observed = Mapping[tuple[Hashable, str], tuple[Part, ...]]

_BATCH_NORMS = ("aten.batch_norm", "aten.native_batch_norm", "aten.cudnn_batch_norm", "aten._native_batch_norm_legit_no_training")
_SMALLEST, _LARGEST = 1e-15, 1e15
"""Norms between which squares in single precision neither vanish nor overflow."""
_LOOKUPS = ("aten.embedding", "aten.embedding_bag")


@dataclass(frozen=True, eq=False)
class Producer:
    """Rows of one weight that make channels, each channel at most once."""

    tensor: str
    positions: Labels
    """Positions along the weight's dimension."""
    channels: Labels
    """The channel that each row makes."""
    rows: Tensor
    """The weights that make each channel: shape ``(channels, rest)``, in the weight's dtype."""
    parts: Labels
    """The group of its convolution that each row belongs to."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that a criterion may look at."""

    weights: Mapping[str, Tensor]
    combine: Combine = field(default_factory=Combine)
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    """By weight, the factor that a batch norm right behind it puts on each of its outputs."""
    partitions: Mapping[str, int] = field(default_factory=dict)
    """By weight, the groups of the convolution that it belongs to, where there are several."""
    lookups: frozenset[str] = frozenset()
    """Weights whose rows are looked up by number."""
    products: frozenset[int] = frozenset()
    """Classes of channels that two activations are multiplied and summed over."""
    observed: Observed = field(default_factory=dict)
    """What calibration found, by criterion and group."""
    solution: Solution | None = None
    """The graph that the weights belong to, with its channels."""

    @cached_property
    def expectation(self) -> Expectation:
        """What weights and norms tell of all activations."""
        assert self.solution is not None
        return Expectation(self.solution)

    def producers(self, group: ChannelGroup) -> Iterator[Producer]:
        """The producers of a group, one after the other.

        A weight that makes a channel with several rows, as a fused query and key projection does, counts as several
        producers. Embeddings only count where nothing else makes the channels.
        """
        for member in _makers(group, self.lookups):
            weight = self.weights[member.tensor].detach()
            for picked in occurrences(member.channels):
                positions = member.positions[picked]
                parts = positions * self.partitions.get(member.tensor, 1) // member.length
                yield Producer(member.tensor, positions, member.channels[picked], _rows(member, positions, weight), parts)

    def seen(self, criterion: Hashable, group: ChannelGroup) -> tuple[Part, ...]:
        """What calibration found for a criterion in a group; an error says where data are missing."""
        parts = self.observed.get((criterion, group.name))
        if parts is None:
            raise SelectionError(f"{criterion} needs calibration data for {group.name!r}: give some batches with data=...")
        return parts

    def products_of(self, group: ChannelGroup) -> Labels:
        """The channels of a group over which two activations are multiplied and summed, as queries and keys are."""
        return np.flatnonzero([number in self.products for number in group.classes.tolist()])


def gather(solution: Solution, *, combine: Combine | None = None, observed: Observed | None = None) -> Evidence:
    """Collect the evidence that a captured model holds by itself, and add what calibration saw."""
    capture = solution.walk.capture
    dotted = [solution.classes[labels[labels != NONE]] for labels, role, _ in solution.ledger.roles if role == "dot"]
    leaves = {str(n.target) for n in capture.graph.nodes if n.op == "get_attr"}
    weights = {name: _in_reals(capture.leaf(name).detach()) for name in sorted(leaves)}
    return Evidence(
        weights=weights,
        combine=combine or Combine(),
        scales=dict(_batch_norm_scales(capture.graph, weights)),
        partitions=dict(_partitions(capture.graph)),
        lookups=frozenset(name for node in _calls(capture.graph, _LOOKUPS) if (name := leaf(node.args[0]))),
        products=frozenset(np.concatenate([np.zeros(0, dtype=np.int64), *dotted]).tolist()),
        observed=observed or {},
        solution=solution,
    )


def _in_reals(values: Tensor) -> Tensor:
    """Complex numbers as pairs along a last dimension of its own, which leaves the others where they are."""
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def precise(values: Tensor) -> Tensor:
    """In double precision, or in single precision on devices that have nothing better."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def lengths(rows: Tensor) -> Tensor:
    """The Euclidean norm of each row: shape ``(rows,)``, in double precision.

    Squares are summed in the rows' own precision, single at least; of rows which these would not fit in, in double precision.
    """
    found = precise(torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32)))
    extreme = ~((found > _SMALLEST) & (found < _LARGEST))
    if bool(extreme.any()):
        found[extreme] = torch.linalg.vector_norm(precise(rows[extreme]), dim=1)
    return found


def _rows(member: Member, positions: Labels, weight: Tensor) -> Tensor:
    """The weight's rows for some of the member's positions, without a copy where these are all of its first dimension, in order."""
    if member.dim == 0 and member.rows == 1 and np.array_equal(positions, np.arange(weight.shape[0])):
        return weight.reshape(weight.shape[0], -1)
    return replace(member, positions=positions).flatten(weight)


def _makers(group: ChannelGroup, lookups: frozenset[str]) -> tuple[Member, ...]:
    writers = tuple(m for m in group.writers if m.tensor not in lookups)
    return writers or group.writers or tuple(m for m in group.members if m.role == "carries") or group.members


def occurrences(channels: Labels) -> Iterator[Labels]:
    """Split places so that each part holds a channel at most once: the first place of every channel, the second, and so on."""
    order = np.argsort(channels, kind="stable")
    ordered = channels[order]
    starts = np.searchsorted(ordered, ordered)
    number = np.empty_like(channels)
    number[order] = np.arange(channels.size) - starts
    for each in range(int(number.max(initial=-1)) + 1):
        yield np.flatnonzero(number == each)


def _calls(graph: fx.Graph, names: tuple[str, ...]) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if packet(node) in names:
            yield node


def _batch_norm_scales(graph: fx.Graph, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The factor of each batch norm, by the weight of the layer whose output it alone takes."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    for node in _calls(graph, _BATCH_NORMS):
        source = argument(node, "input")
        weight = leaf(source.args[1]) if source.op == "call_function" and len(source.args) > 1 and len(source.users) == 1 else None
        variance = leaf(argument(node, "running_var"))
        if weight is not None and variance is not None and uses[weight] == 1:
            gamma = leaf(argument(node, "weight"))
            scale = (precise(weights[variance]) + float(argument(node, "eps"))).rsqrt()
            yield weight, scale if gamma is None else scale * precise(weights[gamma])


def _partitions(graph: fx.Graph) -> Iterator[tuple[str, int]]:
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and "conv" in str(node.target):
            weight, groups = leaf(argument(node, "weight")), argument(node, "groups")
            if weight is not None and isinstance(groups, int) and groups > 1:
                yield weight, groups
