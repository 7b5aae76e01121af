"""Names for criteria, allocators and recoveries, and how their options are given: they exist here, at the edge, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from secateur.allocate import Allocator, GlobalRank, Isomorphic, Knapsack, Options, Slamp, Uniform
from secateur.cli.bundles import Choice, LeftOpen
from secateur.recover import BatchNorm, FoldMeans, Merge, Nothing, Recovery, Refit, Standard
from secateur.score import L2, OBS, SNP, Fisher, GeometricMedian, GroupNorm, NuclearNorm, Random, Scorer, Signal, Taylor, Variance

CRITERIA = Choice(
    option="criterion",
    entries={
        "l2": L2,
        "gm": GeometricMedian,
        "group_norm": GroupNorm,
        "signal": Signal,
        "nn": NuclearNorm,
        "snp": SNP,
        "taylor": Taylor,
        "fisher": Fisher,
        "variance": Variance,
        "obs": OBS,
        "random": Random,
    },
    default="l2",
    text="How channels are scored: L2 norm, norms of all weights that they have a place in, the part of the signal that "
    "weights and norms expect of them, geometric median, SNP (with --data for "
    "attention), chance; or, on --data: nuclear norm, what the outputs lose (taylor, fisher), what the next layer loses once its "
    "means are folded (variance) or once it is refitted (obs).",
    shared=frozenset(["seed"]),
)
ALLOCATORS = Choice(
    option="allocator",
    entries={"uniform": Uniform, "global_rank": GlobalRank, "slamp": Slamp, "isomorphic": Isomorphic, "knapsack": Knapsack},
    default="uniform",
    text="How one ratio is spread: the same for each layer, by one ranking, by layer-adaptive shares, by rankings among like layers, or by "
    "the score against the multiply-adds, parameters or milliseconds that go (knapsack).",
)
SUITED_CRITERIA = replace(
    CRITERIA,
    default="auto",
    undecided="auto",
    text=f"{CRITERIA.text} auto: obs with --data, or taylor where that takes too much memory; signal without.",
)
SUITED_ALLOCATORS = replace(
    ALLOCATORS,
    default="auto",
    undecided="auto",
    text=f"{ALLOCATORS.text} auto: knapsack with --data, global_rank without, and uniform for a --ratio or a criterion that was chosen.",
)
RECOVERIES = Choice(
    option="recover",
    entries={"standard": Standard, "refit": Refit, "bn": BatchNorm, "means": FoldMeans, "merge": Merge, "none": Nothing},
    default="standard",
    text="What wins back the cut's loss, without training: the best that --data allow, a least-squares refit of the layers behind the cut, "
    "batch-norm statistics, the means of removed channels or their outgoing weights to others like them (no data), or nothing.",
    shared=frozenset(["samples"]),
)
Criterion = Annotated[Scorer, CRITERIA]
Spread = Annotated[Allocator, ALLOCATORS]
Recovering = Annotated[Recovery, RECOVERIES]
Mending = Annotated[Recovery, replace(RECOVERIES, default="none")]
SuitedCriterion = Annotated[Scorer | None, SUITED_CRITERIA]
SuitedSpread = Annotated[Allocator | None, SUITED_ALLOCATORS]
OpenOptions = Annotated[Options | None, LeftOpen(Options)]
