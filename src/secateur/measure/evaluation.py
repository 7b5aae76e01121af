"""Running a model for a measurement without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.capture.caches import without_caches


@contextmanager
def evaluating(models: Iterable[Callable[..., Any]]) -> Iterator[None]:
    """Run in evaluation mode, without gradients and without caches; every module's own mode is back afterwards.

    The flags are set directly, because the modules of exported programs refuse ``eval()``.
    """
    modules = [module for model in models if isinstance(model, nn.Module) for module in model.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), without_caches(modules):
            yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
