"""The command that does all of it with settings that need no thought."""

from __future__ import annotations

from dataclasses import replace

from secateur.allocate import Options
from secateur.cli.command import Answer
from secateur.cli.destination import Config, Destination
from secateur.cli.registry import Criterion, Recovering, Spread
from secateur.cli.results import Cutting, Timing, saved
from secateur.cli.selection import Calibration, Selection
from secateur.cli.source import Source
from secateur.pipeline import recovered

HALF = 0.5


def compress(
    source: Source,
    selection: Selection,
    criterion: Criterion,
    allocator: Spread,
    options: Options,
    calibration: Calibration,
    recover: Recovering,
    cutting: Cutting,
    timing: Timing,
    destination: Destination,
    config: Config,
) -> Answer:
    """Do all of it: cut to half of the MACs unless told otherwise, prove, recover where there is --data, save.

    Example: secateur compress torchvision:resnet18 --data photos/ --out out
    """
    destination.directory()
    opened = source.open()
    found = opened.study()
    wanted = replace(selection, target_macs=HALF) if selection.is_empty else selection
    plan = opened.remembered(wanted.plan(found, criterion, allocator, options, calibration))
    result = cutting.cut(found, plan, timing, seed=source.seed)
    return saved(recovered(result, found, recover, calibration.data), destination)
