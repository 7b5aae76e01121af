"""How much the metric loses as one group alone is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from secateur.allocate import Leave, Options, excluded
from secateur.errors import SelectionError
from secateur.plan import Plan
from secateur.recover import Nothing, Recovery
from secateur.report import numbers
from secateur.report.provenance import provenance
from secateur.rewrite.apply import Prefer
from secateur.score import Scorer
from secateur.score.batches import Data
from secateur.study import Study, study
from secateur.study.suited import suited
from secateur.sweep.metric import Evaluate, metric_name
from secateur.sweep.points import WIDTH, Missed, plain, reasons, remarks, trial_json
from secateur.sweep.run import SAMPLES, model_name, tried, what_was_measured
from secateur.sweep.trial import Dense, Trial, Trials
from secateur.sweep.workers import Workers, check_workers

FORMAT = "secateur-sensitivity/1"
RATIOS = (0.25, 0.5, 0.75)
NOTHING = Nothing()


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupCut(Trial):
    """One group cut alone."""

    group: str
    ratio: float
    """The fraction that was to go."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sensitivity:
    """The metric with each group cut alone; prints as a table of groups by ratios, and goes to JSON."""

    model: str
    metric: str
    """The name of the metric; higher is better."""
    dense: Dense
    cuts: tuple[GroupCut, ...]
    missed: tuple[Missed, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def by_group(self) -> dict[str, dict[float, float]]:
        """The metric by group and ratio, groups in the model's order."""
        found: dict[str, dict[float, float]] = {}
        for cut in self.cuts:
            found.setdefault(cut.group, {})[cut.ratio] = cut.metric
        return found

    def table(self) -> RenderableType:
        """The table for a terminal, with what was missed and the notes below."""
        ratios = sorted({cut.ratio for cut in self.cuts})
        title = f"{self.model}: {self.metric} with one group cut; {numbers.plain(self.dense.metric)} dense"
        table = Table()
        table.add_column("group", overflow="fold")
        for ratio in ratios:
            table.add_column(f"{ratio:g}", justify="right")
        for group, row in self.by_group.items():
            table.add_row(Text(group), *(numbers.plain(row[ratio]) if ratio in row else "" for ratio in ratios))
        return Group(Text(title), table, *remarks(self.missed, self.notes))

    def __str__(self) -> str:
        console = Console(width=WIDTH, record=False)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()

    def to_json(self, *, command: str | None = None) -> dict[str, Any]:
        """All of it as plain JSON values; a metric that is not finite becomes text."""
        return {
            "format": FORMAT,
            "model": self.model,
            "metric": self.metric,
            "dense": {**vars(self.dense), "metric": plain(self.dense.metric)},
            "cuts": [{"group": cut.group, "ratio": cut.ratio, **trial_json(cut, self.dense)} for cut in self.cuts],
            "missed": [vars(one) for one in self.missed],
            "notes": list(self.notes),
            "provenance": provenance(command),
        }


def sensitivity(
    model: nn.Module | torch.export.ExportedProgram | Study,
    inputs: Any = (),
    ratios: Sequence[float] = RATIOS,
    *,
    data: Data | None = None,
    evaluate: Evaluate | None = None,
    criterion: Scorer | None = None,
    exclude: Sequence[Leave] = (),
    options: Options | None = None,
    recover: Recovery = NOTHING,
    prefer: Prefer = "auto",
    samples: int | None = SAMPLES,
    workers: Workers = None,
) -> Sensitivity:
    """Cut each prunable group alone, at each ratio, and take the metric.

    Everything is as for :func:`~secateur.sweep`, but that by default nothing is recovered.

    Args:
        ratios: fractions of a group's channels, or whole heads, that go.

    Raises:
        SelectionError: there is no group that could be cut. A cut that cannot be made is in ``missed`` otherwise.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> list(sc.sensitivity(model, torch.randn(8, 4), [0.25, 0.5]).by_group["0"])
        [0.25, 0.5]
    """
    check_workers(workers)
    found = model if isinstance(model, Study) else study(model, inputs)
    trials = Trials.of(found, data, evaluate, samples, recover=recover, prefer=prefer)
    way = suited(found, criterion=criterion, options=options, data=trials.data, samples=samples)
    leave = excluded(found.groups, found.model, exclude, tied=found.capture.tied)
    groups = [group.name for group in found.groups if group.prunable and group.name not in leave]
    asked = {f"{group} at {ratio:g}": (group, ratio) for group in groups for ratio in ratios}
    if not asked:
        raise SelectionError("Nothing of this model can be cut at these ratios: the study's layers say why.")

    def plan(wish: tuple[str, float]) -> Plan:
        made = way.plan(found, ratios=dict([wish]), exclude=exclude)
        if not made.edits:
            raise SelectionError("that is less than one channel")
        return made

    done, missed = tried(trials, asked, plan, "Cutting one group after the other", workers)
    return Sensitivity(
        model=model_name(found.model),
        metric=metric_name(trials.evaluate),
        dense=trials.dense(),
        cuts=tuple(GroupCut(**vars(trial), group=asked[name][0], ratio=asked[name][1]) for name, trial in done.items()),
        missed=reasons(missed),
        notes=what_was_measured(trials),
    )
