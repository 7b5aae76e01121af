"""The command that does all of it with settings that need no thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.allocate import Options
from secateur.cli.command import Answer
from secateur.cli.destination import Config, Destination
from secateur.cli.progress import working
from secateur.cli.registry import Criterion, Spread
from secateur.cli.results import Cutting, Timing, saved
from secateur.cli.selection import Calibration, Selection
from secateur.cli.source import Source
from secateur.recover import reestimate_batch_norm
from secateur.result import Result
from secateur.score.batches import batches
from secateur.study import Study

HALF, BATCH = 0.5, 16


def compress(
    source: Source,
    selection: Selection,
    criterion: Criterion,
    allocator: Spread,
    options: Options,
    calibration: Calibration,
    cutting: Cutting,
    timing: Timing,
    destination: Destination,
    config: Config,
) -> Answer:
    """Do all of it: cut to half of the MACs unless told otherwise, prove, estimate batch norm anew where there is --data, save.

    Example: secateur compress torchvision:resnet18 --data photos/ --out out
    """
    destination.directory()
    opened = source.open()
    found = opened.study()
    wanted = replace(selection, target_macs=HALF) if selection.is_empty else selection
    plan = opened.remembered(wanted.plan(found, criterion, allocator, options, calibration))
    result = cutting.cut(found, plan, timing, seed=source.seed)
    return saved(recovered(result, found, calibration), destination)


def recovered(result: Result, found: Study, calibration: Calibration) -> Result:
    """The result with batch-norm statistics of the calibration data, if there are both."""
    if calibration.data is None:
        return result
    with working("Estimating batch-norm statistics"):
        count = reestimate_batch_norm(result.model, calibration_batches(found, calibration))
    note = f"the statistics of {count} batch-norm layers were estimated anew on {calibration.data} (at most {calibration.samples} samples)"
    return replace(result, notes=(*result.notes, note)) if count else result


def calibration_batches(found: Study, calibration: Calibration) -> list[Any]:
    """Calibration data in batches that are large enough for statistics, as ``(args, kwargs)``."""
    assert calibration.data is not None
    one_by_one = list(batches(calibration.data, found.capture, samples=calibration.samples))
    size = max(1, BATCH // max(batch.size for batch in one_by_one))
    return [_joined([batch.leaves for batch in one_by_one[i : i + size]], found) for i in range(0, len(one_by_one), size)]


def _joined(parts: Sequence[Sequence[Any]], found: Study) -> Any:
    leaves = [torch.cat(list(column)) if isinstance(column[0], Tensor) else column[0] for column in zip(*parts, strict=True)]
    return pytree.tree_unflatten(leaves, found.capture.in_spec)
