"""The command that lists what can be cut."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.cli.command import Answer
from secateur.cli.source import Source


@dataclass(frozen=True)
class Listing:
    """What is listed."""

    decomposable: bool = False
    """List the layers that can be factorized, with the methods, in place of those whose channels can be cut."""


def layers(source: Source, listing: Listing) -> Answer:
    """List the layers of a model: what can be cut or factorized, and why the rest cannot.

    Example: secateur layers torchvision:resnet18
    """
    found = source.open().study()
    if listing.decomposable:
        return Answer([found.decomposable.table()], {"layers": found.decomposable.to_json()})
    return Answer([found.layers.table()], found.layers.to_json())
