"""What a model runs in training mode alone, such as auxiliary heads, or for other values of its inputs, such as experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.capture.capture import Capture
from secateur.capture.record import can_record, record


def training_branches(capture: Capture) -> Capture | None:
    """Capture the model with its own classes in training mode, or return nothing if they then read no more weights.

    Layers of torch stay in eval mode, so that statistics and randomness are those of the given capture. A model that does not
    run so on the example inputs (it may want targets) has nothing to be looked at.
    """
    unread = _names(capture) - _read(capture)
    if not unread or capture.how != "record" or not can_record():
        return None
    try:
        found = record(capture.model, capture.args, capture.kwargs, branches=True)
    except Exception:  # noqa: BLE001 - training mode may ask for other inputs, and user code raises anything
        return None
    return found if unread & _read(found) else None


def value_branches(capture: Capture, *, tries: int = 4) -> Capture | None:
    """Where values decide what is called, capture the model on other values if it then reads weights that it did not read before.

    Of some tries the one is returned that reads most.
    """
    unread = _names(capture) - _read(capture)
    if not unread or not capture.decided or capture.how != "record" or not can_record():
        return None
    best: Capture | None = None
    for seed in range(tries):
        flat = [_other(x, torch.Generator().manual_seed(seed)) for x in capture.flat_inputs()]
        args, kwargs = pytree.tree_unflatten(flat, capture.in_spec)
        try:
            found = record(capture.model, args, kwargs)
        except Exception:  # noqa: BLE001 - values of our own may make no sense to user code, which raises anything
            continue
        read = unread & _read(found)
        if read and (best is None or len(read) > len(unread & _read(best))):
            best = found
    return best


def _other(value: Any, generator: torch.Generator) -> Any:
    """A tensor of the same values in another order, floating-point ones scattered around them."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool or value.is_complex():
        return value
    shuffled = value.flatten()[torch.randperm(value.numel(), generator=generator).to(value.device)].view(value.shape)
    if not value.is_floating_point() or value.numel() < 2:
        return shuffled
    noise = torch.randn(value.shape, generator=generator).to(value)
    return shuffled + noise * value.std()


def _names(capture: Capture) -> set[str]:
    aliases = {alias for names in capture.tied.values() for alias in names[1:]}
    return {name for name, _ in capture.model.named_parameters(remove_duplicate=False)} - aliases


def _read(capture: Capture) -> set[str]:
    return {str(node.target) for node in capture.graph.find_nodes(op="get_attr")}
