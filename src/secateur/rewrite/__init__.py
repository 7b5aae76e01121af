"""Make the smaller model, and prove it equal to the masked dense one."""

from secateur.rewrite.apply import Rewritten, rewrite, rewrite_factorized
from secateur.rewrite.compare import Trial
from secateur.rewrite.compose import compose, edits_of
from secateur.rewrite.cut import Cut
from secateur.rewrite.draft import draft, draft_with_factors
from secateur.rewrite.factorize import FactorizedLayer, factorize
from secateur.rewrite.perturb import random_like
from secateur.rewrite.prove import TOLERANCE, Proof, prove
from secateur.rewrite.recompose import prove_factorized
from secateur.rewrite.sizes import planned_graph
from secateur.rewrite.slices import Slices
from secateur.rewrite.transfer import transfer
from secateur.rewrite.verify import offenders

__all__ = [
    "TOLERANCE",
    "Cut",
    "FactorizedLayer",
    "Proof",
    "Rewritten",
    "Slices",
    "Trial",
    "compose",
    "draft",
    "draft_with_factors",
    "edits_of",
    "factorize",
    "offenders",
    "planned_graph",
    "prove",
    "prove_factorized",
    "random_like",
    "rewrite",
    "rewrite_factorized",
    "transfer",
]
