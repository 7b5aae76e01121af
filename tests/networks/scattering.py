"""Small networks that gather whole rows of channels by numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Keeps some tokens, adds others that are learned, and puts all back in order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.score, self.head = nn.Linear(10, 16), nn.Linear(16, 1), nn.Linear(16, 4)
        self.absent = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        order = self.score(x).squeeze(-1).argsort(1)
        kept = torch.gather(x, 1, order[:, :3, None].repeat(1, 1, x.shape[2]))
        both = torch.cat([kept, self.absent.expand(x.shape[0], x.shape[1] - 3, -1)], 1)
        return self.head(torch.gather(both, 1, order.argsort(1)[..., None].expand(-1, -1, x.shape[2])))
