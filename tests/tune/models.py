"""Small networks to train, and data for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import secateur as sc
from networks import convolutional as cv


class Normed(nn.Module):
    """A convolution, a batch norm, dropout and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class Named(nn.Module):
    """A classifier that takes its inputs by name and returns its loss beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, values: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        logits = self.head(torch.relu(self.inner(values)))
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Noisy(Dataset[Any]):
    """Images that get other noise each time they are read."""

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(3)
        self.labels = torch.arange(count) % 3
        self.images = torch.randn(count, 1, 6, 6, generator=generator) + self.labels.reshape(-1, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.images[place] + 0.1 * torch.randn(1, 6, 6), self.labels[place]


def cut_to_half(model: nn.Module, inputs: Any, **options: Any) -> tuple[nn.Module, sc.Study, sc.Plan]:
    """The model with half of its channels, its study, and the plan."""
    study = sc.study(model, inputs)
    plan = study.plan(ratio=0.5)
    return sc.apply(study, plan, **options).model, study, plan


def vectors(count: int = 32) -> tuple[Tensor, Tensor]:
    """Points of three classes."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % 3
    return torch.randn(count, 4, generator=generator) + labels.unsqueeze(1), labels


def perceptron() -> nn.Sequential:
    """Two layers without a norm."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def residual() -> nn.Module:
    """A convolutional network with residual sums."""
    torch.manual_seed(2)
    return cv.Residual().eval()
