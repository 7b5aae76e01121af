"""Carry a choice from one capture of a model to another, through the positions of weights that both know."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur.capture import CONSTANT_PREFIX
from secateur.errors import RewriteError
from secateur.groups.solve import Mask, Solution
from secateur.rewrite.cut import Cut


def transfer(cut: Cut, target: Solution) -> Cut:
    """The same cut in another solution of the same model.

    Raises :class:`RewriteError` if the other capture couples channels in a way in which these can't go.
    """
    stored = {place: labels for place, labels in cut.solution.slot_labels.items() if not place[0].startswith(CONSTANT_PREFIX)}
    return cut_where(target, {place: cut.keeps(labels).ravel() for place, labels in stored.items()})


def cut_where(target: Solution, wanted: Mapping[tuple[str, int], Mask]) -> Cut:
    """The cut that keeps these positions of dimensions of stored tensors, and no others; :class:`RewriteError` if there is none."""
    gone = np.zeros(target.ledger.count, dtype=bool)
    known = np.zeros(target.ledger.count, dtype=bool)
    for key, labels in target.slot_labels.items():
        if key in wanted:
            gone[labels.ravel()] = ~wanted[key]
            known[labels.ravel()] = True
    dead = _dead_blocks(target, gone, known)
    by_blocks = target.belongs @ dead.astype(np.int64) > 0
    single = known & ~by_blocks[target.threads]
    dead |= _whole(target, single & gone, single) & target.prunable
    found = Cut(target, dead)
    _compare(found, wanted)
    return found


def _whole(target: Solution, gone: Mask, known: Mask) -> Mask:
    """Classes of which every known label goes."""
    hit = np.bincount(target.classes[gone & known], minlength=target.count)
    all_ = np.bincount(target.classes[known], minlength=target.count)
    return np.asarray((hit > 0) & (hit == all_))


def _dead_blocks(target: Solution, gone: Mask, known: Mask) -> Mask:
    """Blocks that may go and of which every known thread goes."""
    threads = target.belongs.shape[0]
    hit = np.bincount(target.threads[gone & known], minlength=threads)
    all_ = np.bincount(target.threads[known], minlength=threads)
    lost, seen = target.belongs.T @ hit, target.belongs.T @ all_
    return np.asarray(target.prunable_blocks & (seen > 0) & (lost == seen))


def _compare(found: Cut, wanted: Mapping[tuple[str, int], Mask]) -> None:
    for (name, dim), labels in found.solution.slot_labels.items():
        if (name, dim) in wanted and not np.array_equal(found.keeps(labels).ravel(), wanted[name, dim]):
            raise RewriteError(f"another capture of the model couples the channels of {name} (dimension {dim}) differently")
