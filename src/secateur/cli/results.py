"""Carrying out a plan, and what is said and saved of the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.text import Text

from secateur.cli.bundles import option
from secateur.cli.command import Answer
from secateur.cli.destination import Destination, command_line
from secateur.cli.progress import working
from secateur.export import read_directory
from secateur.measure import Latency, compare_latency, slower_than_dense
from secateur.pipeline import apply, recovering
from secateur.plan import Plan
from secateur.recover import Recovery
from secateur.report import console_report, json_report
from secateur.result import Result
from secateur.rewrite import TOLERANCE
from secateur.rewrite.apply import Prefer
from secateur.study import Study

PRETRAINED = "pretrained"
"""Where in a result's directory the files are that the model's own class loads."""


@dataclass(frozen=True)
class Timing:
    """Latency."""

    repeats: int = 50
    """Time each model so often, in turns with the other."""
    threads: int | None = None
    """Let torch work with so many threads; by default as many as it takes by itself."""

    def __call__(self, models: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Latency]:
        """Time models on the same inputs in one run."""
        with working("Timing the dense and the smaller model in turns"):
            return compare_latency(models, args, kwargs, repeats=self.repeats, threads=self.threads)


@dataclass(frozen=True)
class Cutting:
    """How it is cut."""

    prefer: Prefer = "auto"
    """Keep the user's class where its forward can hold the smaller tensors (auto), always (module), or never (graph)."""
    tolerance: float = TOLERANCE
    """The largest error that the proof allows, relative to the outputs."""
    latency: bool = field(default=True, metadata=option("--latency/--no-latency"))
    """Time the dense and the smaller model too."""

    def cut(
        self,
        found: Study,
        plan: Plan,
        timing: Timing,
        *,
        seed: int = 0,
        data: str | None = None,
        samples: int | None = 256,
        recover: Recovery | None = None,
    ) -> Result:
        """The smaller model, proven and measured; with data what a cut left is recovered before it is factorized."""
        between = recovering(recover, data) if recover is not None and data is not None else None
        with working("Cutting and proving"):
            result = apply(
                found, plan, prefer=self.prefer, tolerance=self.tolerance, seed=seed, data=data, samples=samples, between=between
            )
        if not self.latency:
            return result
        timed = timing({"dense": found.model, "compressed": result.model}, result.args, result.kwargs)
        return replace(result, latency=timed, notes=(*result.notes, *slower_than_dense(timed)))


def saved(result: Result, destination: Destination) -> Answer:
    """Save a result, and say what came out."""
    with working("Writing the files"):
        path = result.save(destination.directory(), force=destination.force, onnx=destination.onnx, command=command_line())
        described = not isinstance(result.pretrained, str)
        if described:
            result.save_pretrained(path / PRETRAINED)
    told = json.loads(json_report(result, command=command_line()))
    where = Text(f"Saved in {path}; the report is {path / 'report.html'}")
    more = [Text(f"Saved with a config for from_pretrained in {path / PRETRAINED}")] if described else []
    left_out = dict(read_directory(path).left_out)
    more += [Text(f"{name} was left out: {reason}") for name, reason in left_out.items()]
    return Answer([console_report(result), where, *more], told | {"directory": str(path), "left_out": left_out})
