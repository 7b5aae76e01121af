"""The learning rate over a run, as a function of the epoch alone, so that a run that resumes needs no state for it."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["cosine", "constant"]


def rate_factor(epoch: float, *, epochs: int, warmup: float, shape: Shape, final: float) -> float:
    """The share of the full learning rate after so many epochs, fractions included.

        epoch / warmup                                                    while epoch < warmup
        final + (1 - final) (1 + cos(pi (epoch - warmup) / (epochs - warmup))) / 2      after it

    Loshchilov, Hutter, ICLR 2017.

    >>> [round(rate_factor(e, epochs=10, warmup=2, shape="cosine", final=0.0), 2) for e in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if epoch < warmup:
        return epoch / warmup
    if shape == "constant":
        return 1.0
    share = min(1.0, (epoch - warmup) / max(epochs - warmup, 1e-9))
    return final + (1 - final) * (1 + math.cos(math.pi * share)) / 2
