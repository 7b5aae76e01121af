"""The command that chooses ranks, factorizes layers, proves, measures and saves."""

from __future__ import annotations

import json
from dataclasses import replace

from secateur.cli.command import Answer
from secateur.cli.destination import Config, Destination
from secateur.cli.prune import Planning
from secateur.cli.ranks import Factors
from secateur.cli.results import Cutting, Timing, saved
from secateur.cli.selection import Calibration
from secateur.cli.source import Source


def decompose(
    source: Source,
    factors: Factors,
    calibration: Calibration,
    planning: Planning,
    cutting: Cutting,
    timing: Timing,
    destination: Destination,
    config: Config,
) -> Answer:
    """Replace layers by factors of lower rank, prove the result, measure it, and save it.

    Example: secateur decompose torchvision:resnet18 --target-macs 0.6 --out out
    """
    planning.check(destination)
    opened = source.open()
    found = opened.study()
    plan = opened.remembered(factors.plan(found, calibration))
    plan = replace(plan, settings={**plan.settings, "seed": source.seed})
    planning.keep(plan, destination.force)
    if planning.dry_run:
        return Answer([plan.table()], {"plan": json.loads(plan.to_json())})
    result = cutting.cut(found, plan, timing, seed=source.seed, data=calibration.data, samples=calibration.samples)
    return saved(result, destination)
