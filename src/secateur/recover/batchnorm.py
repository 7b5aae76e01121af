"""Estimate batch-norm statistics anew: cheap, and a large part of what a cut costs a convolutional network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from secateur.capture import normalise_inputs
from secateur.capture.duplicate import duplicate
from secateur.errors import SelectionError
from secateur.recover.recovery import Change, Recovered
from secateur.rewrite import Cut, Slices
from secateur.score.batches import Data, calibration_inputs
from secateur.score.ranks import check_samples, processes, summed, total


def reestimate_batch_norm(model: nn.Module, data: Iterable[Any]) -> int:
    """Set running means and variances to their averages over calibration batches, in place; return the number of layers.

    Every batch counts equally, those of other processes too where there are several. Weights, and the train or eval mode of every
    module, stay as they are, and after an error the statistics too. Raises SelectionError where a batch has one value of a channel.

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
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        count = 0
        with torch.no_grad():
            for batch in data:
                args, kwargs = normalise_inputs(batch)
                model(*args, **kwargs)
                count += 1
        if processes() > 1:
            _share(layers, count)
    except BaseException as error:
        for buffer, value in before:
            buffer.copy_(value)
        if isinstance(error, ValueError):
            raise SelectionError(f"Statistics of these calibration batches cannot be taken, give larger ones: {error}") from error
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(layers)


@torch.no_grad()
def _share(layers: Sequence[nn.modules.batchnorm._BatchNorm], count: int) -> None:
    """Average the statistics of all processes, each as often as it had batches."""
    batches = total(count)
    for layer in layers:
        for statistic in (layer.running_mean, layer.running_var):
            assert statistic is not None
            statistic.copy_(summed(statistic * count) / batches)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(batches)


def shift_batch_norm(model: nn.Module, dense: nn.Module, cut: Cut, data: Sequence[Any]) -> int:
    """Move running statistics by what the cut changed on calibration batches, in place; return the number of layers.

        mean <- mean_dense + (mean_cut(data) - mean_dense(data)),    variance <- variance_dense * variance_cut(data) / variance_dense(data)

    Statistics of few samples are far from those of the training set, but what is peculiar to these samples is so before and
    after the cut, and cancels. Without a cut nothing moves.
    """
    slices = Slices.of(cut)
    after, before = duplicate(model), duplicate(dense)
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


@dataclass(frozen=True)
class BatchNorm:
    """Give batch-norm layers the statistics that calibration data have in the smaller model.

    Example:
        >>> import torch, secateur as sc
        >>> layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8)
        >>> model = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 2, 1)).eval()
        >>> x = torch.randn(16, 3, 8, 8)
        >>> study = sc.study(model, x)
        >>> plan = study.plan(ratio=0.5)
        >>> list(BatchNorm()(sc.apply(study, plan).model, study.cut(plan), x).changes)
        ['1', '3']
    """

    statistics: Literal["shifted", "anew"] = "shifted"
    """Move the trained statistics by what the cut changed, or take the new ones as they are."""
    samples: int | None = 256
    """Use so many samples at most."""

    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Set the statistics in place; raises :class:`~secateur.errors.SelectionError` without data."""
        if data is None:
            raise SelectionError(f"{self} needs calibration data: give some batches with data=...")
        capture = cut.solution.walk.capture
        given = list(calibration_inputs(capture, data, samples=self.samples))
        check_samples(len(given))
        if self.statistics == "shifted":
            shift_batch_norm(model, capture.model, cut, given)
        else:
            reestimate_batch_norm(model, given)
        names = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        return Recovered(f"batch-norm statistics ({self.statistics})", {name: Change() for name in names})
