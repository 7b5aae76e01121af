"""Restrict a plan to the edits that the user's class can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Edit = TypeVar("Edit")


def restrict(edits: Sequence[Edit], holds: Callable[[Sequence[Edit]], bool], ladder: Sequence[Callable[[Edit], bool]]) -> list[Edit]:
    """Most of the edits for which ``holds``: all of them, else those that pass one test of the ladder, else one by one.

    ``ladder`` names kinds of edits that classes hold easily, widest first. Edits that remain out are then tried in halves.
    """
    kept: list[Edit] = []
    for test in (lambda _: True, *ladder):
        chosen = [e for e in edits if test(e)]
        if chosen and holds(chosen):
            kept = chosen
            break
    return _added(kept, [e for e in edits if e not in kept], holds) if len(kept) < len(edits) else kept


def _added(kept: list[Edit], rest: Sequence[Edit], holds: Callable[[Sequence[Edit]], bool]) -> list[Edit]:
    """Add what else holds, by halving what does not."""
    if not rest:
        return kept
    if holds([*kept, *rest]):
        return [*kept, *rest]
    if len(rest) == 1:
        return kept
    middle = len(rest) // 2
    return _added(_added(kept, rest[:middle], holds), rest[middle:], holds)
