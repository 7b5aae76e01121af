"""What to cut, as options say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import typer

from secateur.allocate import Allocator, Options
from secateur.cli.bundles import option
from secateur.cli.progress import working
from secateur.errors import SelectionError
from secateur.plan import Plan
from secateur.score import Scorer
from secateur.study import Study
from secateur.study.suited import suited
from secateur.target import Runtime, Target

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """Calibration."""

    data: str | None = field(default=None, metadata=option(metavar="DATA"))
    """Batches for criteria that look at activations: a .npz or .npy file, a folder of images, or package.module:function."""
    samples: int = 256
    """Use so many samples at most."""


@dataclass(frozen=True)
class Selection:
    """What goes."""

    ratio: float | None = None
    """The fraction of channels that goes, of every layer or of all layers together, as the allocator has it."""
    ratios: tuple[str, ...] = field(default=(), metadata=option(metavar="NAME=NUMBER"))
    """The fraction for one layer, or for all that match a glob, such as 'layer1.*=0.3'; may be repeated."""
    indices: tuple[str, ...] = field(default=(), metadata=option(metavar="NAME=N,N,..."))
    """The channels to remove from one layer, such as conv1=0,3,7; may be repeated."""
    heads: tuple[str, ...] = field(default=(), metadata=option(metavar="[NAME=]NUMBER"))
    """The fraction of whole heads and groups that goes, of all or of those named; may be repeated."""
    target_macs: float | None = None
    """The fraction of the MACs that may remain; the ratio is found."""
    target_params: float | None = None
    """The fraction of the parameters that may remain; the ratio is found."""
    target_bytes: float | None = None
    """The fraction of the bytes of all weights that may remain; the ratio is found."""
    target_latency: float | None = None
    """The fraction of the latency that may remain; found by the times of single layers, then by smaller models beside the dense one."""
    target_runtime: Runtime = "torch"
    """What runs the model that --target-latency is of: torch, or ONNX Runtime on the CPU (extra onnx)."""
    exclude: tuple[str, ...] = field(default=(), metadata=option(metavar="NAME"))
    """A layer, or a glob, to leave as it is on both sides; may be repeated."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        return not (self.ratio is not None or self.ratios or self.indices or self.heads or self.target)

    @property
    def target(self) -> Target | None:
        """What may remain, if that was given."""
        given = {"macs": self.target_macs, "parameters": self.target_params, "bytes": self.target_bytes, "latency": self.target_latency}
        return None if set(given.values()) == {None} else Target(**given, runtime=self.target_runtime)

    def plan(
        self, found: Study, criterion: Scorer | None, allocator: Allocator | None, options: Options | None, calibration: Calibration
    ) -> Plan:
        """Decide, on a study of the model; without options by those that suit a target."""
        if self.is_empty:
            raise typer.BadParameter(
                "Say what goes: --ratio, --ratios, --indices, --heads, --target-macs, --target-params, --target-bytes or --target-latency."
            )
        if not any(layer.prunable for layer in found.layers):
            raise SelectionError(f"Nothing of this model can be pruned. {_reasons(found)}")
        way = suited(
            found,
            criterion=criterion,
            allocator=allocator,
            options=options,
            target=self.target,
            data=calibration.data,
            samples=calibration.samples,
        )
        with working("Choosing channels"):
            plan = way.plan(found, **self._wishes())
        if not plan.edits:
            raise SelectionError(
                "Nothing would be removed: what was asked for is less than one channel of each layer that is not left alone."
            )
        return plan

    def _wishes(self) -> dict[str, Any]:
        heads = [text for text in self.heads if "=" not in text]
        if heads and len(self.heads) > 1:
            raise typer.BadParameter("Give --heads one number for all, or NAME=NUMBER for each, not both.")
        return {
            "ratio": self.ratio,
            "ratios": _by_name("--ratios", self.ratios, float) or None,
            "indices": _by_name("--indices", self.indices, _whole_numbers) or None,
            "heads": _value("--heads", heads[0], float) if heads else _by_name("--heads", self.heads, float) or None,
            "target": self.target,
            "exclude": self.exclude,
        }


def fractions(what: str, text: str, example: str) -> list[float]:
    """Numbers between commas, as an option of that name has them."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{what} takes numbers between commas, such as {example}, not {text!r}.") from error


def _by_name(what: str, texts: Sequence[str], read: Callable[[str], T]) -> dict[str, T]:
    out: dict[str, T] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{what} takes NAME=..., not {text!r}.")
        if name in out:
            raise typer.BadParameter(f"{what} names {name!r} twice.")
        out[name] = _value(what, value, read)
    return out


def _value(what: str, text: str, read: Callable[[str], T]) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{what} cannot read {text!r} as a number.") from error


def _whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _reasons(found: Study) -> str:
    reasons = dict.fromkeys(f"{layer.name}: {layer.reason}" for layer in found.layers)
    return "; ".join(list(reasons)[:5]) or "It has no channels that belong to a layer."
