"""One price on cost for channels and for ranks: at it every group and every layer takes what loses and costs least together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from secateur.decompose import Decomposable, LayerSpec, workload
from secateur.decompose.ranks import Measure
from secateur.decompose.spec import read_spec
from secateur.errors import SelectionError
from secateur.study.curves import Curve, Point
from secateur.study.removals import Removal

Numbers = NDArray[np.float64]
_SWEEPS, _BISECTIONS = 20, 50
_NOTHING = (0.0, "", 0)
ALL = slice(None)
_ANYTHING = 1e12


Left = Mapping[int, Any]
"""The part that is left, by dimension: a number, or one for each of several cuts."""


class Cost(Protocol):
    """What a weight, or something else that shrinks with channels, costs where parts of its dimensions are left."""

    @property
    def axes(self) -> tuple[int, ...]:
        """The dimensions that it follows."""

    def __call__(self, left: Left) -> Numbers: ...


@dataclass(frozen=True)
class Proportional:
    """The cost of a weight that is counted: it follows inputs and outputs."""

    whole: float

    @property
    def axes(self) -> tuple[int, ...]:
        """Both dimensions of its channels."""
        return (0, 1)

    def __call__(self, left: Left) -> Numbers:
        return np.asarray(self.whole * left[0] * left[1])


class Entries(Protocol):
    """What factors of one layer lose and cost: one entry for each rank, the last for the layer as it is."""

    @property
    def points(self) -> tuple[Point, ...]: ...
    @property
    def losses(self) -> Numbers: ...
    @property
    def axes(self) -> tuple[int, ...]: ...
    def costs(self, left: Left, at: int | slice = ...) -> Numbers: ...


@dataclass(frozen=True, eq=False)
class Ranks:
    """Entries whose cost is counted.

    Of the cost, ``first`` shrinks with the layer's inputs, ``last`` with its outputs, ``middle`` with neither; the layer as it is shrinks
    with both, and ``both`` is its cost.
    """

    points: tuple[Point, ...]
    losses: Numbers
    first: Numbers
    middle: Numbers
    last: Numbers
    both: Numbers
    in_dim: int = 1
    """The dimension of the weight along which its inputs lie."""

    @property
    def axes(self) -> tuple[int, ...]:
        """Both dimensions of its channels."""
        return (0, 1)

    def costs(self, left: Left, at: int | slice = ALL) -> Numbers:
        """The cost of each entry, or of one."""
        inputs, outputs = left[self.in_dim], left[1 - self.in_dim]
        return np.asarray(self.first[at] * inputs + self.middle[at] + self.last[at] * outputs + self.both[at] * inputs * outputs)


def ranks_of(layer: nn.Module, row: Decomposable, curve: Curve, of: Measure, *, units: int = 1) -> Ranks:
    """The entries of a layer's curve that are worth their cost, with what each of their layers costs, so many units each element or MAC."""
    spec = read_spec(layer, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    kept = _efficient(curve.errors.costs, curve.errors.errors)
    entries = tuple(curve.points[place] for place in kept)
    first, middle, last, both = units * np.array([_parts(spec, entry, row, of) for entry in entries], dtype=np.float64).T
    return Ranks(entries, curve.errors.errors[kept], first, middle, last, both, in_dim=0 if spec.transposed or spec.inputs_first else 1)


def _efficient(costs: NDArray[np.int64], losses: Numbers) -> NDArray[np.int64]:
    """The entries that lose less than all that are cheaper; the last always."""
    order = np.lexsort((losses, costs))
    best = np.minimum.accumulate(losses[order])
    better = np.concatenate([[True], best[1:] < best[:-1]])
    return np.array(sorted({*order[better].tolist(), len(costs) - 1}), dtype=np.int64)


def _parts(spec: LayerSpec, point: Point, row: Decomposable, of: Measure) -> tuple[float, float, float, float]:
    if point is None:
        return 0.0, 0.0, 0.0, float(getattr(workload([spec], row.calls), of))
    method, rank = point
    specs = list(method.layers(spec, rank).values())
    whole, head, rest = (float(getattr(workload(some, row.calls), of)) for some in (specs, specs[:1], specs[:-1]))
    return head, rest - head, whole - rest, 0.0


def _offer(name: str, losses: Numbers, costs: Numbers, at: int, left: float) -> tuple[float, str, int]:
    """The change of one curve's place that lowers the loss most for its cost among those that fit."""
    gain, extra = losses[at] - losses, costs - costs[at]
    # Where a change costs nothing it is worth more than any that does.
    worth = np.where((gain > 0) & (extra <= left), gain / np.maximum(extra, 1e-9), 0.0)
    place = int(worth.argmax())
    return float(worth[place]), name, place


@dataclass(frozen=True)
class Choice:
    """How many channels of each group go, as a place on its curve, and which entry each layer takes."""

    steps: Mapping[str, int]
    entries: Mapping[str, int]
    loss: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True, eq=False)
class Weighing:
    """Groups of channels, layers that factors could replace, and what all weights cost."""

    removals: Mapping[str, Removal]
    ranks: Mapping[str, Entries]
    """By the name of the layer's weight."""
    weights: Mapping[str, Cost]
    """The cost of each weight, and of whatever else shrinks, by name."""
    fixed: float
    """The cost of everything else."""
    places: Mapping[str, Mapping[tuple[str, int], Numbers]] = field(default_factory=dict)
    """By group and by further dimensions of what shrinks: the part of it that is gone after each step."""
    _gone: Mapping[str, Mapping[tuple[str, int], Numbers]] = field(init=False)
    """By group and by dimension of a weight: the part of it that is gone after each step."""

    def __post_init__(self) -> None:
        gone = {
            name: {(m.tensor, m.dim): r.gone(m) for m in r.group.members if m.tensor in self.weights} | dict(self.places.get(name, {}))
            for name, r in self.removals.items()
        }
        object.__setattr__(self, "_gone", gone)

    @cached_property
    def dense(self) -> Choice:
        """Nothing goes, and no layer is factorized."""
        return self.told(Choice(dict.fromkeys(self.removals, 0), {name: len(r.losses) - 1 for name, r in self.ranks.items()}))

    @property
    def least(self) -> Choice:
        """The cheapest choice, whatever it loses."""
        return self.at(_ANYTHING / max(self.dense.cost, 1e-9))

    def within(self, allowed: float) -> Choice:
        """The choice at the least price at which the cost is allowed, and what that leaves spent where it buys most.

        Raises :class:`SelectionError` where nothing is so cheap.
        """
        low, high = 0.0, 1e-9 / max(self.dense.cost, 1.0)
        while (best := self.at(high)).cost > allowed:
            low, high = high, 10 * high
            if high > 1e12:
                raise SelectionError("channels and factors together cannot make the model so cheap")
        for _ in range(_BISECTIONS):
            middle = (low * high) ** 0.5 if low else high / 10
            found = self.at(middle)
            if found.cost > allowed:
                low = middle
            else:
                high, best = middle, found
            if high <= low * (1 + 1e-3):
                break
        return self._spent(best, allowed)

    def at(self, price: float) -> Choice:
        """What is best at a price on cost: from the dense model on, group by group and layer by layer, and the other way round."""
        found = [self._settled(price, groups_first=first) for first in (True, False)]
        return min(found, key=lambda choice: choice.loss + price * choice.cost)

    def _settled(self, price: float, *, groups_first: bool) -> Choice:
        now = self.dense
        for _ in range(_SWEEPS):
            before = now
            for groups in (groups_first, not groups_first):
                now = self._groups(now, price) if groups else self._layers(now, price)
            if now == before:
                break
        return self.told(now)

    def told(self, now: Choice) -> Choice:
        """The choice with what it loses and costs."""
        loss = sum(float(self.removals[name].losses[step]) for name, step in now.steps.items())
        loss += sum(float(self.ranks[name].losses[entry]) for name, entry in now.entries.items())
        kept = self._kept(now.steps)
        cost = self.fixed + sum(float(self._costs(name, now.entries, self._left(name, kept))) for name in self.weights)
        return replace(now, loss=loss, cost=cost)

    def _groups(self, now: Choice, price: float) -> Choice:
        for name, removal in self.removals.items():
            best = int((removal.losses + price * self._costs_of_steps(now, name)).argmin())
            now = replace(now, steps={**now.steps, name: best})
        return now

    def _costs_of_steps(self, now: Choice, name: str) -> Numbers:
        """The cost of all weights that a group's channels lie in, after each of its steps."""
        gone, others = self._gone[name], self._kept({**now.steps, name: 0})
        costs = np.zeros(len(self.removals[name].losses))
        for tensor in dict.fromkeys(tensor for tensor, _ in gone):
            left = {axis: part - gone.get((tensor, axis), np.zeros(len(costs))) for axis, part in self._left(tensor, others).items()}
            costs += self._costs(tensor, now.entries, left)
        return costs

    def _layers(self, now: Choice, price: float) -> Choice:
        best = {name: int((ranks.losses + price * self._costs_of_entries(now, name)).argmin()) for name, ranks in self.ranks.items()}
        return replace(now, entries=best)

    def _costs_of_entries(self, now: Choice, name: str) -> Numbers:
        kept = self._kept(now.steps)
        return self.ranks[name].costs({axis: np.array(part) for axis, part in self._left(name, kept).items()})

    def _spent(self, now: Choice, allowed: float) -> Choice:
        """Take back what is worth most for its cost, one group or layer at a time, while anything fits."""
        while True:
            left = allowed - now.cost
            steps = [_offer(n, r.losses, self._costs_of_steps(now, n), now.steps[n], left) for n, r in self.removals.items()]
            entries = [_offer(n, r.losses, self._costs_of_entries(now, n), now.entries[n], left) for n, r in self.ranks.items()]
            step, entry = max(steps, default=_NOTHING), max(entries, default=_NOTHING)
            if max(step, entry)[0] <= 0:
                return now
            if step > entry:
                now = self.told(replace(now, steps={**now.steps, step[1]: step[2]}))
            else:
                now = self.told(replace(now, entries={**now.entries, entry[1]: entry[2]}))

    def _kept(self, steps: Mapping[str, int]) -> Mapping[tuple[str, int], float]:
        """The part of each dimension of a weight that is left."""
        kept: dict[tuple[str, int], float] = defaultdict(lambda: 1.0)
        for name, step in steps.items():
            for place, gone in self._gone[name].items():
                kept[place] -= float(gone[step])
        return kept

    def _left(self, name: str, kept: Mapping[tuple[str, int], float]) -> dict[int, float]:
        """The parts of all dimensions that a cost follows."""
        axes = self.ranks[name].axes if name in self.ranks else self.weights[name].axes
        return {axis: kept[name, axis] for axis in axes}

    def _costs(self, tensor: str, entries: Mapping[str, int], left: Left) -> Numbers:
        """What a weight costs where these parts of its dimensions are left."""
        return self.ranks[tensor].costs(left, entries[tensor]) if tensor in self.ranks else self.weights[tensor](left)


def described(choice: Choice, weighing: Weighing) -> Iterator[str]:
    """Notes on what was chosen for what."""
    pruned = [f"{name} ({r.group.size} -> {r.group.size - int(r.counts[choice.steps[name]])})" for name, r in weighing.removals.items()]
    cut = [text for text, step in zip(pruned, choice.steps.values(), strict=True) if step]
    factors = [name.removesuffix(".weight") for name, entry in choice.entries.items() if weighing.ranks[name].points[entry] is not None]
    whole = _untouched(choice, weighing)
    yield f"of both ways these lose least: channels of {_listed(cut)}; factors for {_listed(factors)}; left as they are: {_listed(whole)}"


def _untouched(choice: Choice, weighing: Weighing) -> list[str]:
    cut = {tensor for name, step in choice.steps.items() if step for tensor, _ in weighing._gone[name]}
    return [
        name.removesuffix(".weight")
        for name, entry in choice.entries.items()
        if name not in cut and weighing.ranks[name].points[entry] is None
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
