"""A small network with data and a metric, all of which can be pickled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def samples(count: int = 64) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def weight(model: nn.Module) -> float:
    """Minus the size of the outputs."""
    with torch.no_grad():
        return -float(model(samples()).square().mean())
