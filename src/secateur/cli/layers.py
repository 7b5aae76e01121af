"""The command that lists what can be cut."""

from __future__ import annotations

from secateur.cli.command import Answer
from secateur.cli.source import Source


def layers(source: Source) -> Answer:
    """List the layers of a model: what can be cut, and why the rest cannot.

    Example: secateur layers torchvision:resnet18
    """
    found = source.open().study().layers
    return Answer([found.table()], found.to_json())
