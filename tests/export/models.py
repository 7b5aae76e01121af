"""Small models, each with one thing that is hard to save, and a stand-in for a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.plan import Plan
from secateur.rewrite import Proof, rewrite
from secateur.study import study


class Residual(nn.Module):
    """Convolutions with batch norm around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.stem(image)).relu()
        return self.head((x + self.inner(x)).mean((2, 3)))


class FusedAttention(nn.Module):
    """Queries, keys and values of one projection; the class cannot hold them in other proportions."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        return tokens + self.drop(self.out(mixed))


class Tied(nn.Module):
    """An embedding that is the output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(self.up(x).relu()))


class Nested(nn.Module):
    """Nested inputs by name, nested outputs with a number and None, a buffer that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 3)
        self.register_buffer("cache", torch.rand(8) + 0.5, persistent=False)

    def forward(self, pair: tuple[Tensor, Tensor], *, scale: float, options: dict[str, Tensor] | None = None) -> dict[str, Any]:
        y = self.down(self.up(pair[0]).relu() * self.cache) * scale + (options or {}).get("shift", pair[1]) + pair[1]
        return {"y": (y, None), "n": 4, "sums": [y.sum(-1)]}


class Windowed(nn.Module):
    """Attention in five dimensions, which ONNX has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        batch, windows, length, _ = tokens.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, windows, length, 2, -1).transpose(2, 3)

        mixed = F.scaled_dot_product_attention(split(self.query(tokens)), split(self.key(tokens)), split(self.value(tokens)), mask)
        return self.out(mixed.transpose(2, 3).reshape(batch, windows, length, -1))


class Cache:
    """An object that torch.export does not know."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.up(x).relu()
        return {"y": self.down(y), "cache": Cache(x * 2)}


class Branching(nn.Module):
    """Control flow that reads a tensor, which torch.export cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(x).relu())
        return y if x.sum().item() > 0 else -y


class Pair(NamedTuple):
    """A container that torch.export stores under no name."""

    first: Tensor
    second: Tensor


class Named(NamedTuple):
    """One with others in it."""

    up: Tensor
    more: dict[str, Pair]


class NamedOutputs(nn.Module):
    """Returns named tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Named:
        up = self.up(x)
        return Named(up.sum(1), {"inner": Pair(self.down(up), x * 2)})


def nested_inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((torch.randn(2, 3), torch.randn(2, 3)),), {"scale": 2.0, "options": {"shift": torch.randn(2, 3)}}


@dataclass(frozen=True, eq=False)
class Stand:
    """What export looks at in a result."""

    model: nn.Module
    kind: Literal["module", "graph"]
    plan: Plan
    proof: Proof
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()

    def outputs(self, model: nn.Module | None = None) -> Any:
        """What the model, or another one, returns on the example inputs."""
        with torch.no_grad():
            return (model or self.model)(*self.args, **self.kwargs)


def compressed(dense: nn.Module, inputs: Any, *, prefer: Literal["auto", "module", "graph"] = "auto", ratio: float = 0.5) -> Stand:
    found = study(dense.eval(), inputs)
    plan = found.plan(ratio=ratio)
    done = rewrite(found.cut(plan), prefer=prefer)
    stages = ({"kind": done.kind, "attributes": done.attributes},)
    return Stand(done.model, done.kind, plan, done.proof, found.capture.args, found.capture.kwargs, stages, done.notes)
