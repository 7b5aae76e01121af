"""Metrics of a model on validation data, for those who have no function of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import UsageError
from secateur.measure.evaluation import evaluating
from secateur.tune.losses import Loss, default_loss, model_inputs, scores_of, target_of


@dataclass(frozen=True, eq=False)
class Top1:
    """The share of samples, in percent, whose highest logit is that of their label.

    >>> model = nn.Linear(2, 2)
    >>> labels = model(torch.eye(2)).argmax(1)
    >>> Top1([(torch.eye(2), labels)])(model)
    100.0
    """

    data: Iterable[Any]
    """Batches, as for training."""
    name = "top-1"
    best = "highest"

    def __call__(self, model: nn.Module) -> float:
        """Run the model on all data."""
        hits = samples = 0
        for batch, outputs in outputs_of(model, self.data):
            target = target_of(batch)
            scores, dim = scores_of(outputs)
            if target is None or target.shape != scores.shape[:dim] + scores.shape[dim + 1 :]:
                raise UsageError("The validation data have no labels that go with the outputs. Give a metric of your own.")
            hits += int((scores.argmax(dim) == target).sum())
            samples += target.numel()
        return 100 * hits / max(samples, 1)


@dataclass(frozen=True, eq=False)
class MeanLoss:
    """The loss, averaged over batches."""

    data: Iterable[Any]
    """Batches, as for training."""
    loss: Loss = default_loss
    name = "loss"
    best = "lowest"

    def __call__(self, model: nn.Module) -> float:
        """Run the model on all data."""
        losses = [float(self.loss(outputs, batch)) for batch, outputs in outputs_of(model, self.data)]
        return sum(losses) / max(len(losses), 1)


def outputs_of(model: nn.Module, data: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each batch, where the model is, with what the model returns for it in evaluation mode."""
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    with evaluating([model]):
        for given in data:
            batch = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), given)
            args, kwargs = model_inputs(batch, model)
            yield batch, model(*args, **kwargs)
