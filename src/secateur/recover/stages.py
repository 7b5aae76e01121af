"""Which layers are fitted together, and where the activations of all samples are held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from secateur.recover.paired import bytes_at, dense_bytes, small_bytes
from secateur.recover.pairs import Pair
from secateur.rewrite import Cut
from secateur.score.ranks import collected


@dataclass(frozen=True, eq=False)
class Stage:
    """Layers that are fitted on one run of the data."""

    pairs: tuple[Pair, ...]
    held: bool
    """Whether all samples stop at its one layer and go on from there; else they stay where they are, for others to start from."""


def stages_of(pairs: Sequence[Pair], cut: Cut, batches: int, memory: float, passes: int) -> list[Stage]:
    """Pairs in the order of the graph: one by one where the activations of so many batches take up so many bytes at most.

    Where they take more, up to ``passes`` runs of layers, each with the layers of a run on what the dense model puts out.
    """
    fits = [all(told) for told in zip(*collected([size * batches <= memory for size in _sizes(pairs, cut)]), strict=True)]
    found = []
    for held, places in groupby(range(len(pairs)), key=lambda i: fits[i]):
        run = list(places)
        parts = [np.array([i]) for i in run] if held else np.array_split(run, max(1, min(passes, len(run))))
        found += [Stage(tuple(pairs[i] for i in part), held) for part in parts]
    return found


def _sizes(pairs: Sequence[Pair], cut: Cut) -> list[int]:
    """Bytes that a batch takes up with the dense model behind each layer and the smaller one before it."""
    graph, stops = cut.solution.walk.capture.graph, [pair.dense.node for pair in pairs]
    dense = bytes_at(graph, dense_bytes, stops)
    small = bytes_at(graph, lambda node: small_bytes(node, cut), stops)
    return [max(dense[node]) + small[node][0] for node in stops]
