"""Layer-adaptive ratios for channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateur.allocate.allocator import smallest
from secateur.allocate.ladder import Ladder, Scores
from secateur.allocate.options import Options
from secateur.errors import SelectionError


@dataclass(frozen=True)
class Slamp:
    """Rank each candidate by its share of what is left of its group when all lower ones are gone.

        slamp_i = s_i^2 / sum_{v >= i} s_v^2        with s ascending

    The highest of every group has share 1, so no group vanishes, and the scale of a group does not matter. After LAMP
    (Lee et al., ICLR 2021), with channels in place of weights. Scores must not be negative.
    """

    def __call__(self, ladders: Sequence[Ladder], ratio: float) -> Mapping[str, int]:
        """Steps to take of each group, by name."""
        return smallest(ladders, [_shares(each) for each in ladders], ratio)

    @staticmethod
    def settled(options: Options) -> tuple[Options, tuple[str, ...]]:
        """The options with a normalisation under which squares mean something, and a note if that is another one."""
        if options.layer_norm in ("none", "tss_norm"):
            return options, ()
        note = f"slamp squares scores, so layer_norm {options.layer_norm!r} is replaced by 'tss_norm'"
        return replace(options, layer_norm="tss_norm"), (note,)


def _shares(ladder: Ladder) -> Scores:
    scores = ladder.scores
    if scores.size and scores[0] < 0:
        raise SelectionError(f"slamp squares scores, but those of {ladder.name!r} are negative. Use layer_norm 'none' or 'tss_norm'.")
    squares = (scores / scores.max(initial=np.finfo(float).tiny)) ** 2
    rest = np.cumsum(squares[::-1])[::-1]
    shares = np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)
    return np.maximum.accumulate(shares) if shares.size else shares
