"""Say how much each channel matters; higher means keep."""

from secateur.score.combine import Combine, GroupPolicy, Policy
from secateur.score.evidence import Evidence, gather
from secateur.score.l2 import L2
from secateur.score.normalize import LayerNorm, normalize
from secateur.score.scorer import Scorer, score_groups

__all__ = ["Combine", "Evidence", "GroupPolicy", "L2", "LayerNorm", "Policy", "Scorer", "gather", "normalize", "score_groups"]
