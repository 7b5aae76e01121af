"""The command that cuts to several targets and shows what each costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.text import Text

from secateur.cli.bundles import option
from secateur.cli.command import Answer
from secateur.cli.destination import Config, command_line, refuse_existing
from secateur.cli.registry import OpenOptions, Recovering, SuitedCriterion, SuitedSpread
from secateur.cli.selection import Calibration, fractions
from secateur.cli.source import Source
from secateur.rewrite.apply import Prefer
from secateur.sweep import Sweep
from secateur.sweep import sweep as swept
from secateur.sweep.points import SVG
from secateur.target import Target
from secateur.tune.data import function_of


@dataclass(frozen=True)
class Sweeping:
    """Sweep."""

    targets: str = field(default="0.8,0.65,0.5,0.35", metadata=option(metavar="NUMBER,NUMBER,..."))
    """The fractions that may remain."""
    of: Literal["macs", "params"] = "macs"
    """What the targets are fractions of."""
    exclude: tuple[str, ...] = field(default=(), metadata=option(metavar="NAME"))
    """A layer, or a glob, to leave as it is on both sides; may be repeated."""
    evaluate: str | None = field(default=None, metadata=option(metavar="MODULE:FUNCTION"))
    """A function of a model that returns a number, higher being better; by default the fidelity to the dense model on the data."""
    prefer: Prefer = "auto"
    """Keep the user's class where its forward can hold the smaller tensors (auto), always (module), or never (graph)."""
    latency: bool = False
    """Time each smaller model in turns with the dense one, too."""
    workers: Literal["ray"] | None = None
    """Let tasks of Ray work on the points (extra ray); by default they are worked on in turn."""

    @property
    def goals(self) -> list[Target]:
        """The targets."""
        wanted = fractions("--targets", self.targets, "0.8,0.5")
        return [Target(macs=number) if self.of == "macs" else Target(parameters=number) for number in wanted]


@dataclass(frozen=True)
class Place:
    """Results."""

    out: Path | None = field(default=None, metadata=option(metavar="DIRECTORY"))
    """Write the table, sweep.json, sweep.svg and a plan for each target there."""
    force: bool = False
    """Replace what an earlier sweep wrote there."""


def sweep(
    source: Source,
    sweeping: Sweeping,
    criterion: SuitedCriterion,
    allocator: SuitedSpread,
    options: OpenOptions,
    calibration: Calibration,
    recover: Recovering,
    place: Place,
    config: Config,
) -> Answer:
    """Cut to several targets, prove and recover each, and show the metric against what remains, with the Pareto front.

    Example: secateur sweep torchvision:resnet18 --data photos/ --evaluate my.data:accuracy --targets 0.8,0.65,0.5,0.35 --out out
    """
    if place.out is not None:
        refuse_existing(place.out, place.force)
    goals = sweeping.goals
    evaluate = None if sweeping.evaluate is None else function_of(sweeping.evaluate, "The metric")
    opened = source.open()
    found = swept(
        opened.study(),
        targets=goals,
        data=calibration.data,
        samples=calibration.samples,
        evaluate=evaluate,
        criterion=criterion,
        allocator=allocator,
        exclude=sweeping.exclude,
        options=options,
        recover=recover,
        prefer=sweeping.prefer,
        latency=sweeping.latency,
        seed=source.seed,
        workers=sweeping.workers,
    )
    points = tuple(replace(point, plan=opened.remembered(point.plan)) for point in found.points)
    return _told(replace(found, points=points), place)


def _told(found: Sweep, place: Place) -> Answer:
    content = found.to_json(command=command_line())
    if place.out is None:
        return Answer([found.table()], content)
    path = found.save(place.out, force=place.force, command=command_line())
    return Answer([found.table(), Text(f"Saved in {path}; the drawing is {path / SVG}")], content | {"directory": str(path)})
