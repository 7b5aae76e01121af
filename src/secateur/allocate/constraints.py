"""From wanted numbers of steps to legal ones, with a note wherever a wish was bent."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from secateur.allocate.ladder import Ladder
from secateur.allocate.options import Options, StepOp
from secateur.allocate.pool import Pool
from secateur.errors import SelectionError
from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup


def settle(ladder: Ladder, wanted: int, options: Options) -> tuple[int, tuple[str, ...]]:
    """The legal number of steps nearest to a wanted one, and what had to be changed.

    What is kept of each cell is rounded to multiples of the step size; every cell keeps something, and the group at
    least the minimum. A group that no such multiple fits stays whole.
    """
    steps = wanted
    notes = []
    step = options.step(int(ladder.pool.sizes.min(initial=ladder.pool.size)))
    if step > 1 and options.step_op != "none":
        steps = _rounded(ladder.pool, wanted, ladder.most, step, options.step_op)
        if steps != wanted:
            how = f"what stays is rounded to multiples of {step} ({options.step_op})"
            notes.append(_note(ladder, wanted, steps, how))
    if steps > ladder.most:
        notes.append(_note(ladder, steps, ladder.most, f"at least {max(options.minimum, len(ladder.order))} must stay"))
        steps = ladder.most
    return steps, tuple(notes)


def check_removal(group: ChannelGroup, removed: Collection[int], pool: Pool) -> None:
    """Raise :class:`~secateur.errors.SelectionError` unless the channels can go together: equal shares of every cell, something kept."""
    counts = [int(np.isin(cell, list(removed)).sum()) for cell in pool.cells]
    steps = {count / take for count, take in zip(counts, pool.take, strict=True)}
    if len(steps) > 1 or any(step % 1 for step in steps):
        shares = "equally many channels" if len(set(pool.take)) == 1 else f"channels in proportion {':'.join(map(str, pool.take))}"
        raise SelectionError(
            f"{group.name!r} has {len(pool.cells)} heads or groups, each of which must lose {shares}; "
            f"the given indices take {_per_cell(counts)} from them."
        )
    if any(count == cell.size for count, cell in zip(counts, pool.cells, strict=True)):
        raise SelectionError(f"The given indices remove all channels of {group.name!r} (or of one of its heads); at least one must stay.")


def _rounded(pool: Pool, wanted: int, most: int, step: int, how: StepOp) -> int:
    """Steps that leave a multiple of ``step`` in every cell; leaving the group whole counts as the next multiple above."""
    take = np.array(pool.take, dtype=np.int64)
    kept = pool.sizes[:, None] - take[:, None] * np.arange(most + 1)
    fits = (kept % step == 0).all(0)
    fits[0] = True
    options: Labels = np.flatnonzero(fits)
    if how == "round_up":
        return int(options[options <= wanted].max())
    if how == "round_down":
        below = options[(options >= wanted) & (kept[:, options] % step == 0).all(0)]
        return int(below.min() if below.size else options.max())
    places = kept.sum(0)
    places[0] = (-(-pool.sizes // step) * step).sum()
    distance = abs(places[options] - (pool.size - wanted * int(take.sum())))
    return int(options[np.argmin(distance)])


def _note(ladder: Ladder, wanted: int, steps: int, why: str) -> str:
    per_step = sum(ladder.pool.take)
    return f"{ladder.name}: removes {steps * per_step} of {ladder.pool.size}, not {wanted * per_step}: {why}"


def _per_cell(counts: list[int]) -> str:
    shown = ", ".join(map(str, counts[:16]))
    return shown if len(counts) <= 16 else f"{shown}, ..."
