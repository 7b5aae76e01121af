"""Models that the command line builds by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convnet() -> nn.Module:
    head = (nn.Flatten(), nn.Linear(96, 4))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), *head)


def half_precise() -> nn.Module:
    return convnet().bfloat16()


def wider() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))


def loud() -> nn.Module:
    print("this factory talks")
    return convnet()


def single() -> nn.Module:
    """Nothing can be cut: the only layer makes the output."""
    return nn.Linear(3, 4)


def with_nan() -> nn.Module:
    model = convnet()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = torch.nan
    return model


class Attention(nn.Module):
    """Two heads of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Pair(nn.Module):
    """Two inputs, one of them by name, of different dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.out = nn.Embedding(11, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, *, index: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.mix(x) + self.table(index)))
        return out


def samples() -> list[Tensor]:
    return [torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]


class Branching(nn.Module):
    """A stream that two convolutions write to, a grouped convolution in it, and an attention block behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.q, self.k, self.v = (nn.Linear(16, 24) for _ in range(3))
        self.out, self.last = nn.Linear(24, 18), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.more(x)) + x)
        tokens = self.grouped(x).flatten(2).mT
        q, k, v = (layer(tokens).unflatten(-1, (4, 6)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.last(self.out(mixed.transpose(1, 2).flatten(2)))
        return out


def branching() -> nn.Module:
    model = Branching()
    nn.init.uniform_(model.norm.weight, 0.2, 3)
    return model
