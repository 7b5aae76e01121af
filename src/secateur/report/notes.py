"""Notes as a person wants them: those of one kind in one sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

MANY = 4
"""From so many on, notes that give the same reason are told as one."""
_SHOWN = 3


def gathered(notes: Sequence[str]) -> tuple[str, ...]:
    """Each note once; those of the form ``layer: what: why`` with one reason for many layers as one, in the place of the first."""
    alike: dict[str, list[str]] = defaultdict(list)
    for note in dict.fromkeys(notes):
        alike[_reason(note)].append(note)
    out: list[str] = []
    for why, each in alike.items():
        out += [_as_one(why, each)] if len(each) >= MANY else each
    return tuple(out)


def _reason(note: str) -> str:
    parts = note.split(": ")
    return parts[2] if len(parts) == 3 else note


def _as_one(why: str, notes: Sequence[str]) -> str:
    names = ", ".join(note.partition(": ")[0] for note in notes[:_SHOWN])
    return f"{len(notes)} layers ({names}, ...): {why}; the plan lists them"
