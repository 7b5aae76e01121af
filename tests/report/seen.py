"""The result that all tests of reports look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from networks.whole import mixed
from secateur.layers import Layers
from secateur.measure import Fidelity, Latency, Measurement
from secateur.plan import Plan
from secateur.rewrite import FactorizedLayer, Proof

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
TIMED = Latency(4.25, 4.125, 4.5, 4.0, 17, 3, "torch 2.9", "cpu", 1, 2, "float32")
FASTER = Latency(2.125, 2.0625, 2.25, 2.0, 17, 3, "torch 2.9", "cpu", 1, 2, "float32")


class SideWay(nn.Module):
    """A net with a layer that may be cut, one whose operator has no rule, a norm over channels, and a name that means harm."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(HOSTILE, nn.Conv2d(3, 16, 3, padding=1))
        self.main = nn.Conv2d(16, 8, 3, padding=1)
        self.side = nn.Conv2d(16, 6, 1)
        self.back = nn.Conv2d(6, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, HOSTILE)(x).relu()
        turned = mixed(self.side(x))
        out: Tensor = self.head(self.norm((self.main(x) + self.back(turned)).mean((2, 3))))
        return out


@dataclass(frozen=True, eq=False)
class Seen:
    """What a report sees of a result."""

    model: nn.Module
    kind: str
    plan: Plan
    proof: Proof
    before: Measurement
    after: Measurement
    layers: Layers
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    factorized: tuple[FactorizedLayer, ...] = ()
    notes: tuple[str, ...] = ()
    latency: Mapping[str, Latency] = field(default_factory=dict)
    fidelity: Fidelity | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
