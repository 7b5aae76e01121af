"""What the files are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import nn

from secateur.plan import Plan
from secateur.rewrite import Proof


class Saved(Protocol):
    """The part of a result that goes into its files."""

    @property
    def model(self) -> nn.Module:
        """The smaller model."""

    @property
    def kind(self) -> Literal["module", "graph"]:
        """Whether it is of the user's class, or a graph module."""

    @property
    def plan(self) -> Plan:
        """What was done to the dense model."""

    @property
    def proof(self) -> Proof:
        """How far the smaller model was from its reference."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Example inputs by position."""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Example inputs by name."""

    @property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        """Of each run of edits of one kind the ``kind`` of model that came out, and the ``attributes`` of the class that follow."""

    @property
    def recovered(self) -> tuple[str, ...]:
        """How tensors got new values after their proof; nothing where all are as they were proven."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
