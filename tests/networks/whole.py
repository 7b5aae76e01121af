"""Small networks with an operator whose channels stay whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.library.custom_op("secateur_tests::mixed", mutates_args=())
def mixed(x: Tensor) -> Tensor:
    """An operator that nobody has a rule for: channels in another order."""
    return x.flip(-1).clone()


@mixed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Between(nn.Module):
    """Two layers before an operator and two after it: the outer ones can be cut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, width)
        self.third, self.head = nn.Linear(width, 10), nn.Linear(10, 4)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        return self.head(torch.relu(self.third(self.between(x))))


class Unknown(Between):
    """A custom operator without a rule."""

    def between(self, x: Tensor) -> Tensor:
        return mixed(x)


class Rolled(Between):
    """Channels that each take the place of the next."""

    def between(self, x: Tensor) -> Tensor:
        return x.roll(1, -1)
