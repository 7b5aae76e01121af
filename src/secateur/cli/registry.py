"""Names for criteria and allocators: they exist here, at the edge, and nowhere else."""

from __future__ import annotations

from typing import Annotated

from secateur.allocate import Allocator, GlobalRank, Isomorphic, Slamp, Uniform
from secateur.cli.bundles import Choice
from secateur.score import L2, SNP, GeometricMedian, NuclearNorm, Random, Scorer

CRITERIA = Choice(
    option="criterion",
    entries={"l2": L2, "gm": GeometricMedian, "nn": NuclearNorm, "snp": SNP, "random": Random},
    default="l2",
    text="How channels are scored: L2 norm, geometric median, nuclear norm (needs --data), SNP (data for attention), or chance.",
    shared=frozenset(["seed"]),
)
ALLOCATORS = Choice(
    option="allocator",
    entries={"uniform": Uniform, "global_rank": GlobalRank, "slamp": Slamp, "isomorphic": Isomorphic},
    default="uniform",
    text="How one ratio is spread: the same for each layer, by one ranking, by layer-adaptive shares, or by rankings among like layers.",
)
Criterion = Annotated[Scorer, CRITERIA]
Spread = Annotated[Allocator, ALLOCATORS]
