"""The command that cuts each group alone and shows what that costs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.text import Text

from secateur.cli.bundles import option
from secateur.cli.command import Answer
from secateur.cli.destination import Config, command_line, refuse_existing
from secateur.cli.registry import Mending, OpenOptions, SuitedCriterion
from secateur.cli.selection import Calibration, fractions
from secateur.cli.source import Source
from secateur.errors import FileError
from secateur.rewrite.apply import Prefer
from secateur.sweep import sensitivity as cut_alone
from secateur.tune.data import function_of


@dataclass(frozen=True)
class Cuts:
    """Cuts."""

    ratios: str = field(default="0.25,0.5,0.75", metadata=option(metavar="NUMBER,NUMBER,..."))
    """The fractions of a group that go, one at a time."""
    exclude: tuple[str, ...] = field(default=(), metadata=option(metavar="NAME"))
    """A layer, or a glob, to leave out on both sides; may be repeated."""
    evaluate: str | None = field(default=None, metadata=option(metavar="MODULE:FUNCTION"))
    """A function of a model that returns a number, higher being better; by default the fidelity to the dense model on the data."""
    prefer: Prefer = "auto"
    """Keep the user's class where its forward can hold the smaller tensors (auto), always (module), or never (graph)."""
    workers: Literal["ray"] | None = None
    """Let tasks of Ray work on the cuts (extra ray); by default they are worked on in turn."""

    @property
    def numbers(self) -> list[float]:
        """The fractions."""
        return fractions("--ratios", self.ratios, "0.25,0.5")


@dataclass(frozen=True)
class Table:
    """Results."""

    out: Path | None = field(default=None, metadata=option(metavar="FILE.json"))
    """Write all figures and the plan of each cut there."""
    force: bool = False
    """Replace a file that is there already."""

    def check(self) -> None:
        """Refuse a place that is taken before any work is done."""
        if self.out is not None:
            refuse_existing(self.out, self.force)

    def keep(self, text: str) -> list[Text]:
        """Write the file, if that was asked for, and say so."""
        if self.out is None:
            return []
        try:
            self.out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FileError(f"Cannot write {self.out}: {error}.") from error
        return [Text(f"Saved in {self.out}")]


def sensitivity(
    source: Source,
    cuts: Cuts,
    criterion: SuitedCriterion,
    options: OpenOptions,
    calibration: Calibration,
    recover: Mending,
    table: Table,
    config: Config,
) -> Answer:
    """Cut each prunable group alone, at several ratios, and show what the metric makes of it: which layers it hurts to cut.

    Example: secateur sensitivity torchvision:resnet18 --data photos/ --evaluate my.data:accuracy --ratios 0.25,0.5,0.75
    """
    table.check()
    ratios = cuts.numbers
    evaluate = None if cuts.evaluate is None else function_of(cuts.evaluate, "The metric")
    opened = source.open()
    found = cut_alone(
        opened.study(),
        ratios=ratios,
        data=calibration.data,
        samples=calibration.samples,
        evaluate=evaluate,
        criterion=criterion,
        exclude=cuts.exclude,
        options=options,
        recover=recover,
        prefer=cuts.prefer,
        workers=cuts.workers,
    )
    found = replace(found, cuts=tuple(replace(cut, plan=opened.remembered(cut.plan)) for cut in found.cuts))
    content = found.to_json(command=command_line())
    return Answer([found.table(), *table.keep(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")], content)
