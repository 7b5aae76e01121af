"""How layers are factorized, as options say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import typer

from secateur.cli.bundles import option
from secateur.cli.progress import working
from secateur.cli.selection import Calibration
from secateur.decompose import METHODS, ByEnergy, ByRatio, ByVBMF, Decomposition
from secateur.errors import SelectionError
from secateur.plan import Fit, Plan
from secateur.study import Study
from secateur.study.wish import USUAL, RankChoice
from secateur.target import Runtime, Target

Method = Literal["usual", "svd", "tucker", "cp", "spatial-svd"]


@dataclass(frozen=True)
class Factors:
    """What is factorized."""

    method: Method = "usual"
    """SVD for matrices, Tucker, CP or spatial SVD for kernels; usual takes Tucker for kernels and SVD for matrices."""
    rank: tuple[str, ...] = field(default=(), metadata=option(metavar="[NAME=]RANK"))
    """The rank of all layers, or of one layer or glob: 64, 32x64 (in x out), a fraction of the parameters that goes such as 0.5,
    energy:0.9, or vbmf, which takes a calibration ratio such as vbmf:-0.2; may be repeated with names."""
    fit: Fit | None = None
    """Fit factors to the weights alone, to each layer's inputs, or to inputs in turn (sequential); by default inputs with --data."""
    correct_bias: bool = field(default=True, metadata=option("--correct-bias/--no-correct-bias"))
    """With --data, let biases take up the mean of what is lost."""
    round_to: int = 1
    """With a target, ranks are multiples of it."""
    accept_dearer: bool = False
    """Take ranks that make a layer dearer."""
    weighted: bool = field(default=True, metadata=option("--weighted/--no-weighted"))
    """With --data, let errors of layers count as the model's outputs depend on them, where that can be told."""
    timed: bool = False
    """Leave layers as they are whose factors are measured to be slower."""
    strict: bool = False
    """Fail where a layer that factors could replace stays as it is."""
    target_macs: float | None = None
    """The fraction of the MACs that may remain; the ranks are found together."""
    target_params: float | None = None
    """The fraction of the parameters that may remain; the ranks are found together."""
    target_bytes: float | None = None
    """The fraction of the bytes of all weights that may remain; the ranks are found together."""
    target_latency: float | None = None
    """The fraction of the latency that may remain; found by the times of single operators, then by smaller models beside the dense one."""
    target_runtime: Runtime = "torch"
    """What runs the model that --target-latency is of: torch, or ONNX Runtime on the CPU (extra onnx)."""
    exclude: tuple[str, ...] = field(default=(), metadata=option(metavar="NAME"))
    """A layer, or a glob, to leave as it is; may be repeated."""

    @property
    def methods(self) -> tuple[Decomposition, ...]:
        """The methods by name."""
        return USUAL if self.method == "usual" else (METHODS[self.method],)

    @property
    def target(self) -> Target | None:
        """What may remain, if that was given."""
        given = {"macs": self.target_macs, "parameters": self.target_params, "bytes": self.target_bytes, "latency": self.target_latency}
        return None if set(given.values()) == {None} else Target(**given, runtime=self.target_runtime)

    def plan(self, found: Study, calibration: Calibration) -> Plan:
        """Decide, on a study of the model."""
        settings: dict[str, Any] = {"fit": self.fit, "correct_bias": self.correct_bias, "round_to": self.round_to}
        settings |= {"weighted": None if self.weighted else False, "timed": self.timed, "strict": self.strict}
        with working("Choosing ranks"):
            plan = found.plan_decomposition(
                self.methods,
                rank=self._ranks(),
                target=self.target,
                exclude=self.exclude,
                data=calibration.data,
                samples=calibration.samples,
                accept_dearer=self.accept_dearer,
                **settings,
            )
        if not plan.factorizations:
            raise SelectionError("Nothing would be factorized.\n  " + "\n  ".join(plan.settings["notes"]))
        return plan

    def _ranks(self) -> RankChoice | Mapping[str, RankChoice] | None:
        everywhere = [text for text in self.rank if "=" not in text]
        if everywhere and len(self.rank) > 1:
            raise typer.BadParameter("Give --rank one value for all, or NAME=RANK for each, not both.")
        if everywhere:
            return rank_of(everywhere[0])
        named = [text.rpartition("=") for text in self.rank]
        return {name: rank_of(text) for name, _, text in named} or None


def rank_of(text: str) -> RankChoice:
    """A rank, or a rule for it, as an option spells it."""
    word, _, value = text.partition(":")
    try:
        if word == "vbmf":
            return ByVBMF(calibration=float(value or 0))
        if word == "energy":
            return ByEnergy(float(value))
        if "x" in text:
            return tuple(int(part) for part in text.split("x"))
        return int(text) if text.isdecimal() else ByRatio(_fraction(text))
    except ValueError as error:
        raise typer.BadParameter(f"--rank cannot read {text!r}: it takes 64, 32x64, 0.5, energy:0.9, vbmf or vbmf:-0.2.") from error


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise ValueError(text)
    return value
