"""Decide how many channels of each group go, and which."""

from secateur.allocate.allocate import Allocation, allocate
from secateur.allocate.allocator import Allocator, Curve, Times, priced, settled, timed
from secateur.allocate.exclude import Leave, excluded
from secateur.allocate.global_rank import GlobalRank
from secateur.allocate.isomorphic import Isomorphic
from secateur.allocate.knapsack import Knapsack
from secateur.allocate.options import Options, even_step
from secateur.allocate.slamp import Slamp
from secateur.allocate.ties import Ties, alike
from secateur.allocate.uniform import Uniform

__all__ = [
    "Allocation",
    "Allocator",
    "Curve",
    "GlobalRank",
    "Isomorphic",
    "Knapsack",
    "Leave",
    "Options",
    "Slamp",
    "Ties",
    "Times",
    "Uniform",
    "alike",
    "allocate",
    "even_step",
    "excluded",
    "priced",
    "settled",
    "timed",
]
