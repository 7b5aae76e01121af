"""Estimate batch-norm statistics anew: cheap, and a large part of what a cut costs a convolutional network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from secateur.capture import normalise_inputs


def reestimate_batch_norm(model: nn.Module, data: Iterable[Any]) -> int:
    """Set running means and variances to their averages over calibration batches, in place; return the number of layers.

    Every batch counts equally. Weights, and the train or eval mode of every module, stay as they are.

    Li et al., EagleEye, ECCV 2020.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
        >>> reestimate_batch_norm(model, [torch.randn(8, 3, 8, 8)])
        1
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    modes = {m: m.training for m in model.modules()}
    momenta = [m.momentum for m in layers]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        with torch.no_grad():
            for batch in data:
                args, kwargs = normalise_inputs(batch)
                model(*args, **kwargs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(layers)
