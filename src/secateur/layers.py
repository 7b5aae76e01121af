"""The table of layers: what a person may choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.groups import ChannelGroup


@dataclass(frozen=True)
class Layer:
    """One group of channels as the table shows it."""

    name: str
    kind: str
    channels: int
    layout: str
    members: tuple[str, ...]
    parameters: int
    """Parameters that lie at this group's channels."""
    parameter_share: float
    macs_share: float
    reason: str | None

    @classmethod
    def of(cls, group: ChannelGroup, parameters: Mapping[str, int], macs: Mapping[str, int]) -> Layer:
        """Describe a group, given the elements and the multiply-adds of each weight."""
        tensors = _held_shares(group)
        own, work = (sum(costs.get(name, 0) * share for name, share in tensors.items()) for costs in (parameters, macs))
        shares = own / max(sum(parameters.values()), 1), work / max(sum(macs.values()), 1)
        return cls(group.name, group.kind, group.size, group.layout, tuple(tensors), round(own), *shares, group.reason)

    @property
    def prunable(self) -> bool:
        """Whether channels of it may go."""
        return self.reason is None


def _held_shares(group: ChannelGroup) -> dict[str, float]:
    """The share of each tensor that lies at the group's channels, along whichever dimension: each element counts once."""
    others: dict[str, float] = {}
    for member in group.members:
        others[member.tensor] = others.get(member.tensor, 1.0) * (1 - member.share)
    return {name: 1 - share for name, share in others.items()}


@dataclass(frozen=True)
class Layers:
    """All layers of a model, in its order."""

    rows: tuple[Layer, ...]
    prunable_parameters: float
    """Share of the parameters that lie at channels which may go."""
    prunable_macs: float
    unknown: Mapping[str, str]
    """Nodes whose operator has no rule, with the operator."""
    renormalising: Mapping[str, str] = field(default_factory=dict)
    """Nodes that average over channels, which in the smaller model means over the kept ones, with the operator."""

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Layer:
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, Any]:
        """The table as plain values."""
        rows = [asdict(row) | {"prunable": row.prunable} for row in self.rows]
        shares = {"prunable_parameters": self.prunable_parameters, "prunable_macs": self.prunable_macs}
        return {"layers": rows, **shares, "without_rule": dict(self.unknown), "renormalising": dict(self.renormalising)}

    def table(self) -> Table:
        """The table for a terminal."""
        title = (
            f"{sum(r.prunable for r in self.rows)} of {len(self.rows)} layers can be cut: {self.prunable_parameters:.1%} of the parameters"
        )
        table = Table(title=f"{title}, {self.prunable_macs:.1%} of the MACs")
        for name in ("layer", "channels", "coupled tensors", "parameters", "MACs", "prunable"):
            left = name in ("layer", "prunable")
            table.add_column(name, justify="left" if left else "right", overflow="fold" if left else "ellipsis")
        for row in self.rows:
            shares = (f"{row.parameter_share:.1%}", f"{row.macs_share:.1%}")
            table.add_row(row.name, row.layout, str(len(row.members)), *shares, "yes" if row.reason is None else f"no: {row.reason}")
        for node, operator in self.unknown.items():
            table.add_row(node, "", "", "", "", f"no rule for {operator}")
        return table

    def __str__(self) -> str:
        console = Console(width=160, record=False)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()
