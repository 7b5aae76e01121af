"""The command that does all of it with settings that need no thought."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from secateur.cli.command import Answer
from secateur.cli.destination import Config, Destination
from secateur.cli.progress import working
from secateur.cli.registry import OpenOptions, Recovering, SuitedCriterion, SuitedSpread
from secateur.cli.results import Cutting, Timing, saved
from secateur.cli.selection import Calibration, Selection
from secateur.cli.source import Source
from secateur.errors import SelectionError
from secateur.pipeline import recovered, recovering
from secateur.plan import Plan
from secateur.recover import Recovery
from secateur.study import Study
from secateur.study.cheaper import Cheaper

HALF = 0.5
_TARGETS: dict[str, Any] = {f.name: f.default for f in fields(Selection) if f.name.startswith("target_")}
_NAMES = "--target-macs, --target-params, --target-bytes or --target-latency"


@dataclass(frozen=True)
class Ways:
    """Ways."""

    cheaper: bool = False
    """In each layer remove channels or lower the rank, whichever loses less of the outputs: for a target of any kind, on --data."""

    def plan(self, found: Study, wanted: Selection, calibration: Calibration, recover: Recovery) -> Plan:
        """Decide on both, on a study of the model."""
        target = wanted.target
        if target is None or replace(wanted, **_TARGETS, exclude=()) != Selection():
            raise SelectionError(f"--cheaper finds channels and ranks for a target ({_NAMES}): give nothing else of what goes.")
        between = recovering(recover, calibration.data) if calibration.data is not None else None
        with working("Weighing channels against ranks"):
            return Cheaper().plan(found, target, calibration.data, exclude=wanted.exclude, samples=calibration.samples, between=between)


def compress(
    source: Source,
    selection: Selection,
    criterion: SuitedCriterion,
    allocator: SuitedSpread,
    options: OpenOptions,
    calibration: Calibration,
    recover: Recovering,
    ways: Ways,
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
    if ways.cheaper:
        if criterion is not None or allocator is not None or options is not None:
            raise SelectionError(
                "--cheaper scores channels by what their readers lose: leave out --criterion, --allocator and their settings."
            )
        chosen = ways.plan(found, wanted, calibration, recover)
    else:
        chosen = wanted.plan(found, criterion, allocator, options, calibration)
    plan = opened.remembered(chosen)
    data, samples = calibration.data, calibration.samples
    result = cutting.cut(found, plan, timing, seed=source.seed, data=data, samples=samples, recover=recover)
    return saved(recovered(result, found, recover, calibration.data), destination)
