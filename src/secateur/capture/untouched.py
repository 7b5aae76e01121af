"""Running a user's model without leaving a trace in it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import is_not
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture.caches import without_caches
from secateur.capture.facts import cuda_devices

_PLAIN = (int, float, str, type(None))


@dataclass
class Keepsakes:
    """Copies of tensors from before they were written, to be put back."""

    kept: dict[int, tuple[Tensor, Tensor, int | None]] = field(default_factory=dict)

    def keep(self, tensor: Tensor) -> Tensor:
        """Remember what a tensor holds now, unless it is remembered already, and return the copy."""
        if id(tensor) not in self.kept:
            self.kept[id(tensor)] = (tensor, tensor.detach().clone(), _version(tensor))
        return self.kept[id(tensor)][1]

    def put_back(self) -> None:
        """Write the remembered contents back to the tensors that were written since."""
        for tensor, before, version in self.kept.values():
            if version is None or _version(tensor) != version:
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(before)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@contextmanager
def untouched(model: nn.Module, flat_inputs: list[Any], *, branches: bool = False) -> Iterator[Keepsakes]:
    """Put the model in eval mode for a while; afterwards it and the random states are as before.

    With ``branches`` modules that are no layers of torch are in training mode, so that they run what they run in training alone.
    Caches for a next call are switched off.

    Restored are attributes, parameters, buffers with their contents, train/eval flags, hooks and ``requires_grad``
    of every module. Whoever sees that another tensor is about to be written hands it to ``Keepsakes.keep``.
    """
    modules = list(model.modules())
    attributes = [(module, _attributes(module)) for module in modules]
    requires_grad = [(x, x.requires_grad) for module in modules for x in module._parameters.values() if x is not None]
    keepsakes = Keepsakes()
    for tensor in _state(modules):
        keepsakes.keep(tensor)
    try:
        with _same_random_state(model, flat_inputs), _attention_in_the_open(), without_caches(modules):
            _evaluate(model)
            if branches:
                _train_own_classes(model)
            yield keepsakes
    finally:
        for module, before in attributes:
            _restore(module, before)
        keepsakes.put_back()
        for tensor, flag in requires_grad:
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)


def _state(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Yield the buffers, and the tensors that modules hold as plain attributes."""
    for module in modules:
        yield from (buffer for buffer in module._buffers.values() if buffer is not None)
        for name, value in vars(module).items():
            if not name.startswith("_") and not _is_plain(value):
                yield from (x for x in pytree.tree_leaves(value) if isinstance(x, Tensor) and not isinstance(x, nn.Parameter))


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (type(value) is tuple and all(isinstance(each, _PLAIN) for each in value))


def _evaluate(model: nn.Module) -> None:
    with suppress(NotImplementedError):  # modules made by torch.export have no modes
        model.eval()


def _train_own_classes(model: nn.Module) -> None:
    for module in model.modules():
        if not type(module).__module__.startswith("torch.nn."):
            module.training = True


def _attributes(module: nn.Module) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in module.__dict__.items()}


def _restore(module: nn.Module, before: dict[str, tuple[Any, dict[Any, Any] | None]]) -> None:
    for name in module.__dict__.keys() - before.keys():
        del module.__dict__[name]
    for name, (value, content) in before.items():
        module.__dict__[name] = value
        if content is not None and (list(value) != list(content) or any(map(is_not, value.values(), content.values()))):
            value.clear()
            value.update(content)


@contextmanager
def _same_random_state(model: nn.Module, flat_inputs: list[Any]) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda_devices(model, flat_inputs)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _attention_in_the_open() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` from its fused inference kernel, which hides the projections."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
