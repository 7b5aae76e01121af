"""Batch-norm statistics after a cut, from few images."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.recover import reestimate_batch_norm
from secateur.rewrite import Cut, Slices


def shift_batch_norm(model: nn.Module, dense: nn.Module, cut: Cut, data: Sequence[Tensor]) -> int:
    """Move running statistics by what the cut changed on calibration batches, in place; return the number of layers.

        mean <- mean_dense + (mean_cut(data) - mean_dense(data)),    variance <- variance_dense * variance_cut(data) / variance_dense(data)

    Statistics of few images are far from those of the training set, but what is peculiar to these images is so before and
    after the cut, and cancels. Without a cut nothing moves.
    """
    slices = Slices.of(cut)
    after, before = copy.deepcopy(model), copy.deepcopy(dense)
    count = reestimate_batch_norm(after, data)
    reestimate_batch_norm(before, data)
    trained, now = dict(dense.named_buffers()), dict(after.named_buffers())
    then = {name: slices.apply(name, buffer) for name, buffer in before.named_buffers()}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(slices.apply(name, trained[name]) + now[name] - then[name])
            elif name.endswith("running_var"):
                buffer.copy_(slices.apply(name, trained[name]) * now[name] / then[name].clamp(min=torch.finfo(buffer.dtype).tiny))
    return count
