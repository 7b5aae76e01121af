"""What a sweep found: a point for each target, and which of them are worth having."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from secateur.export.whole import whole_directory
from secateur.report import numbers
from secateur.report.provenance import provenance
from secateur.sweep.front import pareto
from secateur.sweep.plot import Dot, plot
from secateur.sweep.trial import Dense, Trial

FORMAT = "secateur-sweep/1"
JSON, SVG, TABLE = "sweep.json", "sweep.svg", "sweep.txt"
WIDTH = 140


@dataclass(frozen=True, eq=False, kw_only=True)
class Point(Trial):
    """The smaller model of one target."""

    target: float
    """What was allowed to remain."""


@dataclass(frozen=True)
class Missed:
    """What was asked for and did not come about."""

    what: str
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Sweep:
    """The points of a sweep beside the dense model; prints as a table, goes to JSON, and draws itself."""

    model: str
    quantity: Literal["macs", "parameters"]
    """What the targets are of, and what the metric is weighed against."""
    metric: str
    """The name of the metric; higher is better."""
    dense: Dense
    points: tuple[Point, ...]
    missed: tuple[Missed, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def front(self) -> tuple[Point, ...]:
        """The points that no other one, nor the dense model, matches in the metric at no more cost, cheapest first."""
        found = [point for point, on_it in zip(self.points, self._on_front, strict=True) if on_it]
        return tuple(sorted(found, key=self.cost))

    def cost(self, model: Trial | Dense) -> int:
        """MACs or parameters, whichever the targets are of."""
        return model.macs if self.quantity == "macs" else model.parameters

    @property
    def _on_front(self) -> tuple[bool, ...]:
        every: tuple[Trial | Dense, ...] = (self.dense, *self.points)
        return pareto([self.cost(one) for one in every], [one.metric for one in every])[1:]

    def table(self) -> RenderableType:
        """The table for a terminal, with what was missed and the notes below."""
        title = f"{self.model}: {self.metric} against what remains of the {_WORDS[self.quantity]}"
        table = Table()
        latency = any(point.latency for point in self.points)
        for name in ("target", "MACs", "parameters", escape(self.metric), "proof error", *(["latency"] if latency else []), "front"):
            table.add_column(name, justify="right")
        dense = self.dense
        table.add_row("dense", numbers.short(dense.macs), numbers.short(dense.parameters), numbers.plain(dense.metric))
        for point, on_it in zip(self.points, self._on_front, strict=True):
            table.add_row(*self._row(point), *([_timed(point)] if latency else []), "yes" if on_it else "")
        return Group(Text(title), table, *remarks(self.missed, self.notes))

    def _row(self, point: Point) -> tuple[str, ...]:
        shares = point.macs / max(self.dense.macs, 1), point.parameters / max(self.dense.parameters, 1)
        return (f"{point.target:g}", *map(numbers.percent, shares), numbers.plain(point.metric), numbers.small(point.proof_error))

    def __str__(self) -> str:
        console = Console(width=WIDTH, record=False)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()

    def to_json(self, *, command: str | None = None) -> dict[str, Any]:
        """All of it as plain JSON values; a metric that is not finite becomes text."""
        rows = zip(self.points, self._on_front, strict=True)
        return {
            "format": FORMAT,
            "model": self.model,
            "quantity": self.quantity,
            "metric": self.metric,
            "dense": {**vars(self.dense), "metric": plain(self.dense.metric)},
            "points": [{"target": point.target, "front": on_it, **trial_json(point, self.dense)} for point, on_it in rows],
            "missed": [vars(one) for one in self.missed],
            "notes": list(self.notes),
            "provenance": provenance(command),
        }

    def svg(self) -> str:
        """A drawing that needs nothing else: the metric against what remains, the dense model, and the front."""
        whole = max(self.cost(self.dense), 1)
        places = [Dot(100.0, self.dense.metric, "dense", "dense")]
        for point, on_it in zip(self.points, self._on_front, strict=True):
            places.append(Dot(100 * self.cost(point) / whole, point.metric, f"{point.target:g}", "front" if on_it else "behind"))
        return plot(places, title=self.model, across=f"{_WORDS[self.quantity]} that remain (%)", up=self.metric)

    def save(self, path: str | os.PathLike[str], *, force: bool = False, command: str | None = None) -> Path:
        """Write ``sweep.json``, ``sweep.svg``, ``sweep.txt`` and the plan of each point into a directory, whole or not at all.

        Args:
            force: replace a directory that an earlier sweep wrote.
            command: how this came about.

        Raises:
            FileError: the path is taken, or cannot be written.
        """
        told = json.dumps(self.to_json(command=command), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        with whole_directory(Path(path), force=force, mark=JSON) as fresh:
            for name, text in {JSON: told, SVG: self.svg(), TABLE: str(self)}.items():
                (fresh / name).write_text(text, encoding="utf-8")
            for point in self.points:
                point.plan.save(fresh / f"plan-{point.target:g}.json")
        return Path(path)


_WORDS = {"macs": "MACs", "parameters": "parameters"}


def _timed(point: Trial) -> str:
    return numbers.milliseconds(point.latency["compressed"].median_ms) if point.latency else ""


def trial_json(trial: Trial, dense: Dense) -> dict[str, Any]:
    """A trial as plain JSON values, beside the dense model."""
    return {
        "macs": trial.macs,
        "macs_remain": trial.macs / max(dense.macs, 1),
        "parameters": trial.parameters,
        "parameters_remain": trial.parameters / max(dense.parameters, 1),
        "metric": plain(trial.metric),
        "proof_error": plain(trial.proof_error),
        "latency": {name: timed.to_json() for name, timed in trial.latency.items()},
        "notes": list(trial.notes),
        "plan": json.loads(trial.plan.to_json()),
    }


def plain(value: float) -> float | str:
    """A number as JSON knows it, or its text."""
    return value if math.isfinite(value) else str(value)


def remarks(missed: Sequence[Missed], notes: Sequence[str]) -> Iterator[Text]:
    """What is said below a table."""
    yield from (Text(f"{one.what} was missed: {one.reason}", style="yellow") for one in missed)
    yield from (Text(f"note: {note}", style="yellow") for note in notes)


def reasons(missed: Mapping[str, str]) -> tuple[Missed, ...]:
    """What was missed, by name."""
    return tuple(Missed(what, reason) for what, reason in missed.items())
