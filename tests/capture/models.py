"""Small models, each with one thing that is hard to capture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class ConvNet(nn.Module):
    """Convolution, batch norm, in-place activation, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.features(image).mean((2, 3))))


class Branching(nn.Module):
    """Control flow that reads a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) if x.sum().item() > 0 else self.down(x)


class Counting(nn.Module):
    """Buffers and attributes that each forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("last", torch.zeros(1))
        self.history: list[float] = []
        self.notes = {"calls": 0}
        self.anchor = torch.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        self.count[:1].add_(1)
        self.anchor.mul_(2)
        self.last = x.sum()
        self.notes["calls"] += 1
        self.cache = x
        return x * self.count + self.anchor


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Wrapped(nn.Module):
    """A custom autograd function, activation checkpointing, ``.data`` and a branch without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.offset = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = Square.apply(self.first(x))
        y = checkpoint(self.second, y, use_reentrant=False)
        with torch.no_grad():
            shift = y.data.mean()
        return y - shift + F.linear(x, self.first.weight.data) + self.offset.data


class Creating(nn.Module):
    """Tensors made on the way, lists of tensors, Python numbers against tensors."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        rows = [row * 2.0 for row in left.unbind(0)]
        index = torch.arange(right.shape[1]).flip(0)
        return torch.stack(rows) + right[:, index] + torch.tensor([1.0, 2.0]) + torch.zeros(2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


class Memory:
    """An object that pytree takes for a leaf."""

    def __init__(self, layers: list[dict[str, Tensor]]) -> None:
        self.layers = layers
        self.length = 3


class Nested(nn.Module):
    """Nested inputs by name, nested outputs with numbers, None and an opaque object."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, pair: tuple[Tensor, Tensor], *, scale: float, options: dict[str, Tensor] | None = None) -> dict[str, Any]:
        y = self.lin(pair[0]) * scale + (options or {}).get("shift", pair[1])
        return {"y": (y, None), "n": 4, "memory": Memory([{"k": y + 1, "v": pair[1]}])}
