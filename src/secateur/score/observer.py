"""What a criterion that needs data is, and what it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, fx

from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.scorer import Scorer


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a node while a batch runs through the graph."""

    inputs: Mapping[fx.Node, Any]
    """What the nodes before it returned."""
    output: Any
    batch: int
    """Samples in the batch."""
    valid: int
    """Samples that count; the others only fill the batch up."""


class Observer(Protocol):
    """Gathers what a criterion needs to know of one node, batch by batch."""

    @property
    def node(self) -> fx.Node:
        """The node whose calls are to be shown."""
        ...

    def see(self, call: Call) -> None:
        """Take in one call."""
        ...

    def share(self) -> None:
        """Add what the other processes have seen, once all batches are through; see :mod:`secateur.score.ranks`."""
        ...

    def parts(self) -> Sequence[Part]:
        """Scores after all batches: for each producer its channels and their scores."""
        ...


@runtime_checkable
class GradientObserver(Observer, Protocol):
    """An observer that looks at gradients too: of a random projection of the model's outputs, by what its node returned."""

    def see_gradient(self, call: Call, gradient: Tensor) -> None:
        """Take in the gradient of one call, after the batch has gone through the whole graph."""
        ...


class DataScorer(Scorer, Protocol):
    """A criterion that looks at activations."""

    def observers(self, group: ChannelGroup, solution: Solution, combine: Combine) -> Sequence[Observer]:
        """What has to be observed for a group; nothing where the weights say all."""
        ...
