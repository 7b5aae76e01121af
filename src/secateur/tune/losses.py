"""What a batch holds, and what a model loses on it where the user does not say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import ModelError, UsageError

Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, batch)``: a scalar."""
LABELS = ("labels", "label")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def model_inputs(batch: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What of a batch goes into the model, as ``(args, kwargs)``.

    Of a tuple or list all but the last item, which is the target; of a mapping what forward takes by name; else the batch itself.
    """
    if isinstance(batch, Mapping):
        names = _names(model)
        return (), {name: value for name, value in batch.items() if names is None or name in names}
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return tuple(batch[:-1]), {}
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def target_of(batch: Any) -> Tensor | None:
    """The target in a batch: its last item, or its labels."""
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in LABELS if name in batch), None)
    else:
        found = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    return found if isinstance(found, Tensor) else None


def default_loss(outputs: Any, batch: Any) -> Tensor:
    """The loss that outputs carry, as those of transformers do; else cross entropy for integer targets, squared error for others.

    Raises :class:`UsageError` where it takes a loss function to say what is meant.
    """
    own = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if isinstance(own, Tensor):
        return own
    target = target_of(batch)
    if target is None:
        raise UsageError("A batch has no target that a loss could be taken from. Give (inputs, target), labels by name, or loss=...")
    scores, dim = scores_of(outputs)
    if target.is_floating_point():
        if target.shape != scores.shape:
            raise UsageError(f"Targets have the shape {tuple(target.shape)}, outputs {tuple(scores.shape)}. Give loss=...")
        return functional.mse_loss(scores, target)
    if target.shape != scores.shape[:dim] + scores.shape[dim + 1 :]:
        if isinstance(batch, Mapping) or target.shape != scores.shape[:-1]:
            shapes = f"labels of the shape {tuple(target.shape)} for outputs of the shape {tuple(scores.shape)}"
            raise UsageError(f"It is not clear what the loss is with {shapes}. Give loss=...")
        dim = scores.dim() - 1
    return functional.cross_entropy(scores.movedim(dim, 1), target)


def scores_of(outputs: Any) -> tuple[Tensor, int]:
    """The logits among outputs, or the first tensor, with the dimension of the classes."""
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named, (named.dim() - 1 if not isinstance(outputs, Tensor) else 1)
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, tuple | list) else (outputs,)
    found = next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)
    if found is None:
        raise ModelError(f"The model returned {type(outputs).__name__} without a tensor that a loss could be taken of.")
    return found, min(1, found.dim() - 1)


def is_regression(batch: Any) -> bool:
    """Whether a batch's target is of real numbers."""
    target = target_of(batch)
    return target is not None and target.is_floating_point()


def _names(model: nn.Module) -> set[str] | None:
    """The names that a model's forward takes; ``None`` if it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind in _NAMED}
