"""The command that chooses, cuts, proves, measures and saves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import typer

from secateur.allocate import Options
from secateur.cli.bundles import option
from secateur.cli.command import Answer
from secateur.cli.destination import Config, Destination, refuse_existing
from secateur.cli.registry import Criterion, OpenOptions, Spread
from secateur.cli.results import Cutting, Timing, saved
from secateur.cli.selection import Calibration, Selection
from secateur.cli.source import Source
from secateur.plan import Plan


@dataclass(frozen=True)
class Planning:
    """Plan."""

    dry_run: bool = False
    """Choose and show, without cutting anything."""
    plan: Path | None = field(default=None, metadata=option(metavar="FILE.json"))
    """Write the plan to a file too."""

    def keep(self, plan: Plan, force: bool) -> None:
        """Write the plan, if that was asked for."""
        if self.plan:
            plan.save(self.plan, force=force)

    def check(self, destination: Destination) -> None:
        """Refuse places that are taken, and work without a place to put its result, before any work is done."""
        if self.plan:
            refuse_existing(self.plan, destination.force)
        if self.dry_run and destination.out:
            raise typer.BadParameter("--dry-run writes no model; leave out --out, or give --plan FILE.json.")
        if not self.dry_run:
            destination.directory()


def prune(
    source: Source,
    selection: Selection,
    criterion: Criterion,
    allocator: Spread,
    options: OpenOptions,
    calibration: Calibration,
    planning: Planning,
    cutting: Cutting,
    timing: Timing,
    destination: Destination,
    config: Config,
) -> Answer:
    """Choose channels, cut them, prove the result, measure it, and save it.

    Example: secateur prune torchvision:resnet18 --target-macs 0.5 --out out
    """
    planning.check(destination)
    opened = source.open()
    found = opened.study()
    settings = options or (Options() if selection.target_latency is None else None)
    plan = opened.remembered(selection.plan(found, criterion, allocator, settings, calibration))
    planning.keep(plan, destination.force)
    if planning.dry_run:
        return Answer([plan.table()], {"plan": json.loads(plan.to_json())})
    return saved(cutting.cut(found, plan, timing, seed=source.seed), destination)
