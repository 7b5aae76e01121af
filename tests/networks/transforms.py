"""Small networks whose forward maps, differentiates or branches through torch's own higher-order functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mapped(nn.Module):
    """A stack of weights, each applied by ``vmap``, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(10, 4)
        self.stack = nn.Parameter(torch.randn(3, 12, 10))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.vmap(self.first)(x).relu()
        each = torch.vmap(lambda weight: hidden @ weight)(self.stack)
        return self.last(each.mean(0).relu())


class Conditional(nn.Module):
    """One of two layers, by the size of what comes in, through ``torch.cond``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(10, 4)
        self.one, self.other = nn.Linear(12, 10), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        branches = (lambda h: self.one(h).relu(), lambda h: self.other(h).sigmoid())
        return self.last(torch.cond(hidden.abs().amax() < 50.0, *branches, (hidden,)))


class Forces(nn.Module):
    """The gradient of an energy with respect to the inputs, as models of molecules return it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.energy = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            places = x.detach().requires_grad_(True)
            energy = self.energy(torch.tanh(self.second(torch.tanh(self.first(places)))))
            (gradient,) = torch.autograd.grad(energy.sum(), places)
        return energy.detach(), -gradient
