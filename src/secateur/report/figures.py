"""What a report says, in values that all its forms share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from secateur.layers import Layer
from secateur.measure import Latency
from secateur.report import numbers
from secateur.report.notes import gathered
from secateur.report.reported import Reported
from secateur.rewrite import FactorizedLayer

State = Literal["cut", "spared", "whole"]


@dataclass(frozen=True)
class Figure:
    """One thing that was measured on the dense and on the compressed model; less is better."""

    name: str
    before: float
    after: float
    before_text: str
    after_text: str
    detail: str = ""
    """Both values to the last digit, or their spread."""

    @property
    def remains(self) -> float | None:
        """The compressed model's share of the dense one's; ``None`` where that had nothing."""
        return self.after / self.before if self.before else None

    @property
    def change(self) -> str:
        """The difference in percent, with its sign."""
        if self.remains is None:
            return "" if self.after == self.before else "new"
        return "unchanged" if self.after == self.before else f"{100 * (self.remains - 1):+.1f} %".replace("-", "−").replace(" ", "\u00a0")


@dataclass(frozen=True)
class Bar:
    """One layer's channels: how many stay and how many go."""

    layer: Layer
    removed: int

    @property
    def kept(self) -> int:
        """Channels that stay."""
        return self.layer.channels - self.removed

    @property
    def share(self) -> float:
        """Share of the channels that stay."""
        return self.kept / max(self.layer.channels, 1)

    @property
    def state(self) -> State:
        """Whether the layer was cut, was spared by the plan, or cannot be cut."""
        return "cut" if self.removed else "spared" if self.layer.prunable else "whole"


def figures(result: Reported) -> tuple[Figure, ...]:
    """All that can be set side by side, latency only where both models were timed."""
    before, after = result.before, result.after
    rows = [
        _counted("Parameters", before.parameters, after.parameters),
        _counted("MACs", before.macs, after.macs),
        _counted("Size of weights", before.bytes, after.bytes, "B"),
        _counted("Peak activation memory", before.peak_activation_bytes, after.peak_activation_bytes, "B"),
    ]
    return (*rows, *_predicted(result), *_timed(result))


def _counted(name: str, before: int, after: int, unit: str = "") -> Figure:
    detail = " → ".join(map(numbers.exact, (before, after))) + (" bytes" if unit else "")
    return Figure(name, before, after, numbers.short(before, unit), numbers.short(after, unit), detail)


def _predicted(result: Reported) -> Iterator[Figure]:
    """What the plan's target of latency was predicted to leave, where it had one."""
    found = result.plan.settings.get("latency", {}).get("predicted_ms")
    if found:
        dense, compressed = float(found["dense"]), float(found["compressed"])
        texts = numbers.milliseconds(dense), numbers.milliseconds(compressed)
        yield Figure("Latency, predicted", dense, compressed, *texts, "sum of the times of all layers by themselves")


def _timed(result: Reported) -> Iterator[Figure]:
    if {"dense", "compressed"} <= result.latency.keys():
        dense, compressed = result.latency["dense"], result.latency["compressed"]
        texts = numbers.milliseconds(dense.median_ms), numbers.milliseconds(compressed.median_ms)
        yield Figure("Latency", dense.median_ms, compressed.median_ms, *texts, f"middle half {_middle(dense)} → {_middle(compressed)}")


def _middle(timed: Latency) -> str:
    return f"{timed.lower_ms:.4g} to {timed.upper_ms:.4g}"


def conditions(timed: Latency) -> str:
    """Under what conditions a latency was found."""
    threads = "1 thread" if timed.threads == 1 else f"{timed.threads} threads"
    batch = "batch unknown" if timed.batch is None else f"batch {timed.batch}"
    calls = f"median of {timed.repeats} calls after {timed.warmup} to warm up"
    return f"{calls}, {timed.runtime}, {timed.device}, {threads}, {batch}, {timed.dtype}"


def bars(result: Reported) -> tuple[Bar, ...]:
    """One bar a layer, in the model's order."""
    removed = {edit.group: len(edit.remove) for edit in result.plan.prunes}
    return tuple(Bar(layer, removed.get(layer.name, 0)) for layer in result.layers)


def renormalising(result: Reported) -> dict[str, str]:
    """Nodes that average over channels, which from now on means over the kept ones, with the operator; empty where unknown."""
    return dict(getattr(result.layers, "renormalising", {}))


def macs_by_layer(result: Reported) -> dict[str, tuple[int, int]]:
    """Multiply-adds of every layer in the dense and in the compressed model; 0 where a model has no such layer."""
    before, after = result.before.macs_by_layer, result.after.macs_by_layer
    return {name: (before.get(name, 0), after.get(name, 0)) for name in {**before, **after}}


@dataclass(frozen=True)
class FactorizedRow:
    """A layer that became several, with the multiply-adds of the dense model's layer and of those in its place."""

    layer: FactorizedLayer
    macs_before: int
    macs_after: int


def factorized(result: Reported) -> tuple[FactorizedRow, ...]:
    """One row a factorized layer, in the order in which the model runs them."""
    before, after = result.before.macs_by_layer, result.after.macs_by_layer
    return tuple(FactorizedRow(row, _within(before, row.layer), _within(after, row.layer)) for row in result.factorized)


def _within(macs: Mapping[str, int], layer: str) -> int:
    return sum(count for name, count in macs.items() if name == layer or name.startswith(f"{layer}."))


def not_counted(result: Reported) -> dict[str, int]:
    """Calls of the dense model that do arithmetic which its MACs leave out, by operator."""
    return dict(result.before.not_counted)


def model_name(result: Reported) -> str:
    """What a person would call the model: its class, or that it is a graph."""
    return "Graph of layers" if isinstance(result.model, fx.GraphModule) else type(result.model).__name__


def input_shapes(result: Reported) -> dict[str, str]:
    """The example inputs that everything was measured on: dtype and shape by place."""
    leaves, _ = pytree.tree_flatten_with_path((result.args, dict(result.kwargs)))
    return {pytree.keystr(path[1:]): _shape(leaf) for path, leaf in leaves}


def _shape(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return f"{type(leaf).__name__} {leaf!r}"
    shape = " × ".join(map(str, leaf.shape)) or "scalar"
    return f"{str(leaf.dtype).removeprefix('torch.')} {shape}"


def all_notes(result: Reported) -> tuple[str, ...]:
    """Repairs and what did not work, of the result and of the proof, each once, those of one kind together."""
    return gathered((*result.notes, *result.proof.notes))


def settings(result: Reported) -> Mapping[str, Any]:
    """How the plan came about, without the notes, which are told elsewhere."""
    return {key: value for key, value in result.plan.settings.items() if key != "notes" and value is not None}
