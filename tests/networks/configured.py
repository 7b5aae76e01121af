"""A model with a config of its own, as small as such a thing can be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Settings:
    """Two blocks around a stream; ``inner`` is twice the width unless it is said."""

    width: int = 12
    inner: int | None = None
    depth: int = 2
    scaled: bool = False
    classes: int = 3
    even: bool = False
    floor: int = 2

    def __post_init__(self) -> None:
        if self.even and self.width % 4:
            raise ValueError("the width must be a multiple of 4")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        return cls(**values)


class Configured(nn.Module):
    """Residual blocks between an embedding and a head, all widths of which the config sets."""

    def __init__(self, config: Settings) -> None:
        super().__init__()
        self.config = config
        inner = config.inner or 2 * config.width
        self.embed, self.head = nn.Linear(5, config.width), nn.Linear(config.width, config.classes)
        self.up = nn.ModuleList(nn.Linear(config.width, inner) for _ in range(config.depth))
        self.down = nn.ModuleList(nn.Linear(inner, config.width) for _ in range(config.depth))
        self.scale = config.width**0.5 if config.scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.scale
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.head(x)

    def save_pretrained(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.config.to_dict()))
        torch.save(self.state_dict(), path / "weights.pt")

    @classmethod
    def from_pretrained(cls, path: Path) -> Configured:
        model = cls(Settings(**json.loads((path / "config.json").read_text())))
        model.load_state_dict(torch.load(path / "weights.pt", weights_only=True))
        return model


class Repeated(nn.Module):
    """Three like layers and a wider one, without any config."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.up = nn.ModuleList(nn.Linear(6, size) for size in (8, 8, 8, 10))
        self.down = nn.ModuleList(nn.Linear(size, 6) for size in (8, 8, 8, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return x
