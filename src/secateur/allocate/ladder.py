"""In which order the channels of a group would go, one legal step after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.allocate.pool import Pool
from secateur.groups.fields import Labels
from secateur.score.combine import GroupPolicy

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ladder:
    """The steps of one group in the order of removal; a step takes its share of every head or group at once."""

    pool: Pool
    order: tuple[Labels, ...]
    """The channels of each cell, those that go first in front."""
    scores: Scores
    """What each step costs, ascending: the candidates that groups are compared by."""
    most: int
    """Steps that may be taken at most."""
    joint: Scores | None = None
    """Where the layer's channels are ranked jointly: their scores by cell, each cell ascending."""

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.pool.name

    def steps_for(self, ratio: float) -> int:
        """The steps that remove a ratio of every cell, rounded down."""
        if self.joint is not None:
            return self._joint_steps(ratio)
        wanted = [_floor(size * ratio) // take for size, take in zip(self.pool.sizes.tolist(), self.pool.take, strict=True)]
        return min(wanted, default=0)

    def removed(self, steps: int) -> tuple[int, ...]:
        """The channels that go with the first ``steps`` steps."""
        parts = [order[: steps * take] for order, take in zip(self.order, self.pool.take, strict=True)]
        return tuple(sorted(np.concatenate([np.empty(0, dtype=np.int64), *parts]).tolist()))

    def _joint_steps(self, ratio: float) -> int:
        """Rank all channels together and count, cell by cell, how many are among the worst; the smallest count holds."""
        assert self.joint is not None
        cells = np.repeat(np.arange(len(self.order)), self.pool.sizes)
        worst = np.argsort(self.joint, kind="stable")[: _floor(self.pool.size * ratio)]
        counts = np.bincount(cells[worst], minlength=len(self.order))
        return int((counts // np.array(self.pool.take)).min(initial=self.pool.size))


def ladder(pool: Pool, scores: Scores, group_policy: GroupPolicy, *, minimum: int = 1) -> Ladder:
    """Put the channels of a pool in order of their scores, the lowest first.

    With ``sum`` and ``average`` the channel of the same number goes in every cell, which takes cells of one size;
    otherwise each cell has an order of its own.
    """
    order = _shared_order(pool, scores) if group_policy in ("sum", "average") and is_even(pool) else _own_orders(pool, scores)
    costs = [_per_step(scores[cell], take, pool.steps) for cell, take in zip(order, pool.take, strict=True)]
    joint = np.concatenate([scores[cell] for cell in order]) if group_policy == "count" and order else None
    return Ladder(pool, order, _step_scores(costs, group_policy), pool.most(minimum), joint)


def is_even(pool: Pool) -> bool:
    """Whether all cells have one size, so that the same channel can go in each."""
    return len(set(pool.sizes.tolist())) <= 1 and len(set(pool.take)) <= 1


def _own_orders(pool: Pool, scores: Scores) -> tuple[Labels, ...]:
    return tuple(cell[np.argsort(scores[cell], kind="stable")] for cell in pool.cells)


def _shared_order(pool: Pool, scores: Scores) -> tuple[Labels, ...]:
    if not pool.cells:
        return ()
    table = np.stack(pool.cells)
    order = np.argsort(scores[table].mean(0), kind="stable")
    return tuple(table[:, order])


def _per_step(scores: Scores, take: int, steps: int) -> Scores:
    """Scores of one cell, those of one step in a row: shape ``(steps, take)``."""
    return scores[: steps * take].reshape(steps, take)


def _step_scores(costs: list[Scores], group_policy: GroupPolicy) -> Scores:
    table = np.concatenate(costs, axis=1) if costs else np.zeros((0, 1))
    if group_policy == "sum":
        reduced = table.sum(1)
    elif group_policy == "count":
        reduced = table.max(1)
    else:
        reduced = table.mean(1)
    return np.asarray(np.maximum.accumulate(reduced), dtype=np.float64)


def _floor(value: float) -> int:
    """The whole part, where a product that should be whole but for rounding counts as whole."""
    return math.floor(value + 1e-9)
