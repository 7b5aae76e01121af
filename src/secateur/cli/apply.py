"""The command that carries out a plan that was made before."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from secateur.cli.bundles import argument
from secateur.cli.command import Answer
from secateur.cli.destination import Destination
from secateur.cli.results import Cutting, Timing, saved
from secateur.cli.selection import Calibration
from secateur.cli.source import Source
from secateur.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Plan."""

    plan: Path = field(metadata=argument("PLAN"))
    """A plan that prune wrote, or a directory that holds one."""


def apply(source: Source, planned: Planned, calibration: Calibration, cutting: Cutting, timing: Timing, destination: Destination) -> Answer:
    """Cut and factorize what a saved plan says, prove the result, measure it, and save it.

    Example: secateur apply torchvision:resnet18 plan.json --out out
    """
    destination.directory()
    plan = Plan.load(planned.plan)
    opened = source.open()
    data, samples = calibration.data, calibration.samples
    result = cutting.cut(opened.study(), opened.remembered(plan), timing, seed=source.seed, data=data, samples=samples)
    return saved(result, destination)
