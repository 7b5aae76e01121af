"""What a model runs in training mode alone, such as auxiliary heads."""

from __future__ import annotations

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


def _names(capture: Capture) -> set[str]:
    aliases = {alias for names in capture.tied.values() for alias in names[1:]}
    return {name for name, _ in capture.model.named_parameters(remove_duplicate=False)} - aliases


def _read(capture: Capture) -> set[str]:
    return {str(node.target) for node in capture.graph.find_nodes(op="get_attr")}
