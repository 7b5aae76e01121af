"""A user's model seen as a function of flat tensors, the form in which torch traces it best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture.execution import plain_execution
from secateur.capture.trees import copied, flatten_outputs
from secateur.capture.untouched import untouched

PREFIX = "inner."
"""What stands before the user's names while torch sees a model as a FlatModel."""


class Outcome:
    """How the outputs of the last run were nested."""

    spec: pytree.TreeSpec


class FlatModel(nn.Module):
    """A model that takes the tensors among its flattened inputs, and returns a flat tuple.

    Inputs that are no tensors stay as they were given.
    """

    def __init__(self, model: nn.Module, flat_inputs: Sequence[Any], in_spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.inner = model
        self.outcome = Outcome()
        self._flat_inputs = [None if isinstance(x, Tensor) else x for x in flat_inputs]
        self._positions = [i for i, x in enumerate(flat_inputs) if isinstance(x, Tensor)]
        self._in_spec = in_spec

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        """Run the model on these tensors."""
        flat = copied(self._flat_inputs)
        for position, tensor in zip(self._positions, tensors, strict=True):
            flat[position] = tensor
        args, kwargs = pytree.tree_unflatten(flat, self._in_spec)
        leaves, self.outcome.spec = flatten_outputs(self.inner(*args, **kwargs))
        return tuple(leaves)

    def outputs_on(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return copies of what the model returns on copies of these tensors, and leave it as it was."""
        with untouched(self, list(tensors)), plain_execution(self, list(tensors)):
            return copied(self(*copied(tensors)))


def flatten_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    """Flatten example inputs in pytree order."""
    return pytree.tree_flatten((args, dict(kwargs)))


def tensors_of(flat_inputs: Sequence[Any]) -> list[Tensor]:
    """Return copies of the tensors among flat inputs."""
    return [x.detach().clone() for x in flat_inputs if isinstance(x, Tensor)]
