"""Win back what the cut cost."""

from secateur.recover.attention import Attention
from secateur.recover.batchnorm import BatchNorm, reestimate_batch_norm, shift_batch_norm
from secateur.recover.means import FoldMeans
from secateur.recover.merge import Merge
from secateur.recover.recovery import Change, Recovered, Recovery
from secateur.recover.refit import Refit
from secateur.recover.standard import Nothing, Standard

__all__ = [
    "Attention",
    "BatchNorm",
    "Change",
    "FoldMeans",
    "Merge",
    "Nothing",
    "Recovered",
    "Recovery",
    "Refit",
    "Standard",
    "reestimate_batch_norm",
    "shift_batch_norm",
]
