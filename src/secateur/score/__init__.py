"""Say how much each channel matters; higher means keep."""

from secateur.score.calibrate import calibrate, needs_data
from secateur.score.combine import Combine, GroupPolicy, Policy
from secateur.score.evidence import Evidence, gather
from secateur.score.fisher import Fisher
from secateur.score.geometric_median import GeometricMedian
from secateur.score.group_norm import GroupNorm
from secateur.score.index import Index
from secateur.score.l2 import L2
from secateur.score.normalize import LayerNorm, normalize
from secateur.score.nuclear_norm import NuclearNorm
from secateur.score.obs import OBS
from secateur.score.random import Random
from secateur.score.scorer import Scorer, score_groups
from secateur.score.signal import Signal
from secateur.score.snp import SNP
from secateur.score.taylor import Taylor
from secateur.score.variance import Variance

__all__ = [
    "Combine",
    "Evidence",
    "Fisher",
    "GeometricMedian",
    "GroupNorm",
    "GroupPolicy",
    "Index",
    "L2",
    "LayerNorm",
    "NuclearNorm",
    "OBS",
    "Policy",
    "Random",
    "SNP",
    "Scorer",
    "Signal",
    "Taylor",
    "Variance",
    "calibrate",
    "gather",
    "needs_data",
    "normalize",
    "score_groups",
]
