"""Make the smaller model, and prove it equal to the masked dense one."""

from secateur.rewrite.apply import Rewritten, rewrite
from secateur.rewrite.compare import Trial
from secateur.rewrite.cut import Cut
from secateur.rewrite.perturb import random_like
from secateur.rewrite.prove import TOLERANCE, Proof, prove
from secateur.rewrite.sizes import planned_graph
from secateur.rewrite.slices import Slices
from secateur.rewrite.transfer import transfer
from secateur.rewrite.verify import offenders

__all__ = [
    "TOLERANCE",
    "Cut",
    "Proof",
    "Rewritten",
    "Slices",
    "Trial",
    "offenders",
    "planned_graph",
    "prove",
    "random_like",
    "rewrite",
    "transfer",
]
