"""The moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.capture.leaves import Leaves

State = dict[str, Tensor]


def tensors_of(model: nn.Module) -> Mapping[str, Tensor]:
    """Every parameter and buffer of a model by one name each, those that a state dict leaves out too."""
    return Leaves.of(model).tensors


def copied_state(model: nn.Module) -> State:
    """Copies of all tensors of a model."""
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


@torch.no_grad()
def put_state(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Give a model's tensors these values, in place."""
    for name, tensor in tensors_of(model).items():
        tensor.copy_(state[name])


class Average:
    """An exponential moving average of all tensors of a model.

        w_avg <- d w_avg + (1 - d) w,        d = min(decay, (1 + n) / (10 + n)) in step n

    so that the first steps do not weigh more than they should. Integers are taken as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.state = copied_state(model)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step; steps count from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in tensors_of(model).items():
            if tensor.is_floating_point() or tensor.is_complex():
                self.state[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.state[name].copy_(tensor)
