"""A slow oracle for convolutional networks: which weights a channel goes through, found by poisoning one channel at a time.

A channel is poisoned where a layer writes it, and followed through the user's own forward as NaN. Layers that mix
channels note which of their inputs are poisoned and go on with clean ones, so the poison marks just the places where
this one channel is read; layers with a number for each channel note it and pass it on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cases import Case, call

Slot = tuple[str, int, int]
"""A weight, one of its dimensions, a position."""
CONVOLUTION = nn.modules.conv._ConvNd
MIXING = (CONVOLUTION, nn.Linear)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
CHANNELWISE = (*NORMS, nn.PReLU)


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, CONVOLUTION) and layer.groups == layer.in_channels > 1


def channel_dim(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1


def poisoned(x: Tensor, dim: int) -> Tensor:
    """Numbers of the channels in which anything is NaN."""
    return x.isnan().movedim(dim, 0).flatten(1).any(1).nonzero().flatten()


def poison(x: Tensor, dim: int, channels: Tensor) -> Tensor:
    return x.index_fill(dim, channels, torch.nan)


@dataclass
class Follower:
    """Follows one channel at a time through a model."""

    model: nn.Module
    inputs: Any
    clean: dict[nn.Module, list[tuple[Tensor, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    """Input and output of each call of each layer."""
    calls: dict[nn.Module, int] = field(default_factory=dict)
    writer: nn.Module | None = None
    channel: int = 0
    found: set[Slot] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = {module: name for name, module in self.model.named_modules()}
        self.layers = [m for m in self.names if isinstance(m, MIXING + CHANNELWISE)]
        with self._hooked(lambda m, x, y: self.clean[m].append((x.clone(), y.clone()))):
            call(self.model, self.inputs)

    @contextmanager
    def _hooked(self, look: Any) -> Iterator[None]:
        hooks = [m.register_forward_hook(lambda m, args, y: look(m, args[0], y)) for m in self.layers]
        try:
            with torch.no_grad():
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def writers(self) -> Iterator[tuple[nn.Module, int]]:
        """Every channel that a mixing layer makes."""
        for layer in self.layers:
            if isinstance(layer, MIXING) and not is_depthwise(layer):
                yield from ((layer, c) for c in range(self.clean[layer][0][1].shape[channel_dim(layer)]))

    def follow(self, writer: nn.Module, channel: int) -> tuple[set[Slot], bool]:
        """All places of one channel, and whether it reaches an output."""
        self.writer, self.channel, self.calls = writer, channel, dict.fromkeys(self.layers, 0)
        self.found = self._own(writer, torch.tensor([channel]), writes=True)
        with self._hooked(self._pass):
            outputs = call(self.model, self.inputs)
        return self.found, any(bool(x.isnan().any()) for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor))

    def _pass(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        _, clean = self.clean[layer][self.calls[layer]]
        self.calls[layer] += 1
        dim = channel_dim(layer)
        hit = poisoned(x, dim)
        if is_depthwise(layer):
            hit = (hit[:, None] * (y.shape[1] // x.shape[1]) + torch.arange(y.shape[1] // x.shape[1])).flatten()
        passes = is_depthwise(layer) or not isinstance(layer, MIXING)
        self.found |= self._own(layer, hit, writes=passes)
        if passes:
            return poison(clean, dim, hit)
        return poison(clean, dim, torch.tensor([self.channel])) if layer is self.writer else clean.clone()

    def _own(self, layer: nn.Module, channels: Tensor, *, writes: bool) -> set[Slot]:
        """The places of a layer's own tensors at these channels of its output, or of its input."""
        name = self.names[layer]
        per_channel = [t for t in ("bias", "running_mean", "running_var") if isinstance(getattr(layer, t, None), Tensor)]
        places = {(f"{name}.{tensor}", 0) for tensor in per_channel if writes}
        if getattr(layer, "weight", None) is not None and layer.weight.numel() > 1:
            places |= {(f"{name}.weight", dim) for dim in weight_dims(layer, writes=writes)}
        return {(tensor, dim, int(c)) for tensor, dim in places for c in channels}


def weight_dims(layer: nn.Module, *, writes: bool) -> tuple[int, ...]:
    """Along which dimensions of its weight a layer writes, or reads, its channels."""
    if not isinstance(layer, MIXING):
        return (0,)
    transposed = bool(getattr(layer, "transposed", False))
    if is_depthwise(layer):
        return (0, 1) if transposed else (0,)
    return (int(transposed == writes),)


def classes_by_perturbation(case: Case) -> dict[frozenset[Slot], bool]:
    """Places that go together, by poisoning every channel once, and whether they may go."""
    follower = Follower(case.model(), case.inputs())
    merged: list[tuple[set[Slot], bool]] = []
    for writer, channel in follower.writers():
        slots, whole = follower.follow(writer, channel)
        touching = [m for m in merged if m[0] & slots]
        merged = [m for m in merged if not m[0] & slots]
        merged.append((slots.union(*(m[0] for m in touching)), whole or any(m[1] for m in touching)))
    return {frozenset(slots): not whole for slots, whole in merged}
