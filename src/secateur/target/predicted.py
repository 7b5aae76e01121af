"""The latency that a cut leaves, by the times of single operators."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import fx

from secateur.allocate import Curve, even_step
from secateur.capture import Capture
from secateur.errors import RewriteError
from secateur.groups import ChannelGroup
from secateur.measure.layer_times import LayerTimes
from secateur.measure.operation import Operation
from secateur.rewrite import Cut, planned_graph
from secateur.score.progress import with_progress

PARTS = 8
"""Widths at which an operator is timed, from a part of its full width to all of it."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shrinking:
    """A call of the dense model, and how its sizes follow the channels that are left."""

    operation: Operation
    lost: Mapping[str, Numbers]
    """By group, what each of the call's numbers loses if all of its channels go."""
    count: int = 1
    """How many calls of the model are like this one."""

    @cached_property
    def base(self) -> Numbers:
        """The numbers of the dense call."""
        return np.array(self.operation.numbers, dtype=np.float64)

    def at(self, left: Mapping[str, float]) -> Numbers:
        """The numbers where these parts of the groups' channels are left."""
        return self.base - sum((lost * (1 - left.get(name, 1.0)) for name, lost in self.lost.items()), np.zeros(len(self.base)))


@dataclass(eq=False)
class Interpolation:
    """Times of calls at any sizes, from those at the two nearest that are timed: a smaller and a larger one, all sizes rounded alike.

    Sizes are timed in eighths of the dense ones, rounded up to multiples that processors like. In between time counts as proportional to
    the product of the sizes, which is a convolution's or a matrix product's work.
    """

    times: LayerTimes
    _asked: dict[tuple[str, tuple[float, ...]], tuple[Operation, Operation, float]] = field(default_factory=dict)
    _untimed: dict[str, Operation] = field(default_factory=dict)

    def __call__(self, calls: Sequence[tuple[Operation, Numbers]]) -> list[float]:
        """Milliseconds of each call at its numbers; what does not run by itself takes none."""
        ends = [self._ends(operation, numbers) for operation, numbers in calls]
        found = self.times([end for low, high, _ in ends for end in (low, high)])
        between = [
            None if low is None or high is None else low + part * (high - low)
            for low, high, (_, _, part) in zip(found[::2], found[1::2], ends, strict=True)
        ]
        # Sizes that are rounded may not fit each other any more, as those of a grouped convolution; they are timed as they are.
        rest = self.times([_with(*call) for call, time in zip(calls, between, strict=True) if time is None])
        exact = iter(rest)
        return [(next(exact) or 0.0) if time is None else time for time in between]

    def _ends(self, operation: Operation, numbers: Numbers) -> tuple[Operation, Operation, float]:
        asked = operation.key, tuple(numbers.tolist())
        if asked not in self._asked:
            self._asked[asked] = self._between(operation, numbers)
        return self._asked[asked]

    def _between(self, operation: Operation, numbers: Numbers) -> tuple[Operation, Operation, float]:
        base = np.array(operation.numbers, dtype=np.float64)
        units = np.array([_unit(int(number)) for number in base])
        changed = numbers < base
        low = np.where(changed, np.clip(np.floor(numbers / units) * units, np.minimum(units, base), base), base)
        high = np.where(changed & (numbers > low), np.minimum(low + units, base), low)
        sizes = {(b, n): (lo, hi) for b, n, lo, hi, new in zip(base, numbers, low, high, changed, strict=True) if new}
        whole = float(np.prod([hi for _, hi in sizes.values()])) if sizes else 1.0
        bottom = float(np.prod([lo for lo, _ in sizes.values()])) if sizes else 1.0
        here = float(np.prod([n for _, n in sizes])) if sizes else 1.0
        part = float(np.clip((here - bottom) / (whole - bottom), 0, 1)) if whole > bottom else 0.0
        return _with(operation, low), _with(operation, high), part


def _with(operation: Operation, numbers: Numbers) -> Operation:
    return operation.with_numbers(tuple(int(number) for number in numbers))


def _unit(base: int) -> int:
    step = even_step(base)
    return max(step, -(-base // (PARTS * step)) * step)


@dataclass(eq=False)
class PredictedLatency:
    """The latency of a model and of what is left of it, as the sum of its operators' times.

    What lies between operators (a forward's own Python, caches that another layer has filled) is not in it, so it is compared with
    itself alone: shares of it are to be corrected by measured ones.
    """

    groups: Sequence[ChannelGroup]
    cut_of: Callable[[Mapping[str, Iterable[int]]], Cut]
    times: LayerTimes

    def __post_init__(self) -> None:
        self._interpolated = Interpolation(self.times)

    @cached_property
    def dense_ms(self) -> float:
        """The dense model's latency."""
        return sum(self._interpolated([(each, np.array(each.numbers, dtype=np.float64)) for each in self._dense.values()]))

    @property
    def capture(self) -> Capture:
        """The dense model."""
        return self.cut_of({}).solution.walk.capture

    def operations(self, nodes: Iterable[fx.Node]) -> list[Operation]:
        """The operations of some nodes of the dense model."""
        return [self._dense[node] for node in nodes if node in self._dense]

    @cached_property
    def calls(self) -> dict[fx.Node, Shrinking]:
        """Every call of the dense model with what it loses as channels go."""
        return {node: Shrinking(operation, self._losses.get(node, {})) for node, operation in self._dense.items()}

    def times_of(self, calls: Sequence[tuple[Operation, Numbers]]) -> list[float]:
        """Milliseconds of calls at other numbers than their own; what does not run by itself takes none."""
        return self._interpolated(calls)

    def ms(self, cut: Cut) -> float:
        """The latency of what a cut leaves."""
        now = _operations(planned_graph(cut, values=False).graph)
        return sum(self._interpolated([_smaller(self._dense.get(origin), each) for origin, each in now.items()]))

    def share(self, cut: Cut) -> float:
        """The part of the dense latency that a cut leaves."""
        return self.ms(cut) / max(self.dense_ms, 1e-9)

    def __call__(self, left: Mapping[str, float]) -> Mapping[str, Curve]:
        """For each group the milliseconds of all calls that its channels take part in, at several widths of it, the others as they are."""
        wanted: list[tuple[Operation, Numbers]] = []
        places: dict[str, list[int]] = {}
        for name, calls in self._calls.items():
            parts = self._parts[name]
            places[name] = [len(wanted), len(calls), len(parts)]
            wanted += [(call.operation, np.round(call.at({**left, name: part}))) for part in parts for call in calls]
        found = np.array(self._interpolated(wanted))
        out: dict[str, Curve] = {}
        for name, (start, calls_of, parts_of) in places.items():
            counts = np.array([call.count for call in self._calls[name]], dtype=np.float64)
            table = found[start : start + calls_of * parts_of].reshape(parts_of, calls_of)
            out[name] = Curve(np.array(self._parts[name]), table @ counts)
        return out

    @cached_property
    def _dense(self) -> dict[fx.Node, Operation]:
        return {node: found for node in self.capture.graph.nodes if (found := Operation.of(node)) is not None}

    @cached_property
    def _parts(self) -> dict[str, list[float]]:
        """The parts of each group's channels at which its curve is drawn, all of them first."""
        return {group.name: _parts(group) for group in self.groups}

    @cached_property
    def _calls(self) -> dict[str, list[Shrinking]]:
        """By group the calls that its channels take part in, like ones together."""
        losses = self._losses
        like: dict[tuple[str, str], Shrinking] = {}
        for node, operation in self._dense.items():
            lost = losses.get(node, {})
            which = operation.key, repr(sorted((name, one.tolist()) for name, one in lost.items()))
            like[which] = Shrinking(operation, lost, like[which].count + 1 if which in like else 1)
        return {group.name: found for group in self.groups if (found := [call for call in like.values() if group.name in call.lost])}

    @cached_property
    def _losses(self) -> dict[fx.Node, dict[str, Numbers]]:
        """What the numbers of each call lose as all channels of one group go, told by taking half of them."""
        losses: dict[fx.Node, dict[str, Numbers]] = defaultdict(dict)
        for group in with_progress(self.groups, "Following channels", len(self.groups)):
            for node, lost in self._probed(group):
                losses[node][group.name] = lost
        return losses

    def _probed(self, group: ChannelGroup) -> Iterator[tuple[fx.Node, Numbers]]:
        gone = _half(group)
        if not gone:
            return
        try:
            now = _operations(planned_graph(self.cut_of({group.name: gone}), values=False).graph)
        except RewriteError:
            return  # these channels go with others alone
        for node, small in now.items():
            whole = self._dense.get(node)
            if whole is not None and whole.kind == small.kind and whole.numbers != small.numbers:
                yield node, (np.array(whole.numbers, dtype=np.float64) - np.array(small.numbers)) * group.size / len(gone)


def _operations(graph: fx.Graph) -> dict[fx.Node, Operation]:
    """The operations of a planned graph by the nodes that they come from."""
    found = ((node.meta.get("origin", node), Operation.of(node)) for node in graph.nodes)
    return {origin: operation for origin, operation in found if operation is not None}


def _smaller(whole: Operation | None, small: Operation) -> tuple[Operation, Numbers]:
    """A call as one of the dense model with other numbers, or as one of its own."""
    alike = whole is not None and whole.kind == small.kind
    return whole if whole is not None and alike else small, np.array(small.numbers, dtype=np.float64)


def _half(group: ChannelGroup) -> list[int]:
    """Half of the channels that may go, equally many steps of each cell and all along it, since parts of a cell may be read apart."""
    cells = [np.flatnonzero(group.cells == cell) for cell in range(group.rows)]
    steps = min((cell.size // take for cell, take in zip(cells, group.take, strict=True)), default=0) // 2
    gone = [cell[np.arange(take * steps) * cell.size // (take * steps)] for cell, take in zip(cells, group.take, strict=True) if steps]
    return [int(channel) for some in gone for channel in some]


def _parts(group: ChannelGroup) -> list[float]:
    size = group.size // max(group.rows, 1)
    return [width / size for width in [size, *range((size - 1) // _unit(size) * _unit(size), 0, -_unit(size))]]
