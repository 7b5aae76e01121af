"""Decompose layers: factors of lower rank in place of one kernel, with the rank given, measured or chosen for a budget."""

from secateur.decompose.budget import ErrorCurve, RankAllocation, allocate_ranks, error_curve
from secateur.decompose.calls import Call, Use, uses, workload
from secateur.decompose.cp import CP
from secateur.decompose.factors import Decomposition, Factorized, check, decompose
from secateur.decompose.gather import gather_moments, gather_paired, moments_of
from secateur.decompose.layers import (
    METHODS,
    Decomposable,
    DecomposableLayers,
    captured_layers,
    decomposable,
    decomposable_layers,
    method_of,
    replace_layers,
    settings_of,
)
from secateur.decompose.losses import Change, Loss, gather_losses
from secateur.decompose.metric import Metric
from secateur.decompose.moments import Moments
from secateur.decompose.ranks import ByEnergy, ByHand, ByRatio, ByVBMF, RankRule, break_even, choose_rank
from secateur.decompose.slopes import Slopes, gather_slopes
from secateur.decompose.spec import Cost, LayerSpec, Refusal
from secateur.decompose.svd import SVD, SpatialSVD
from secateur.decompose.trust import acts_as_base
from secateur.decompose.tucker import Tucker
from secateur.decompose.vbmf import Evidence, calibrate_rank, evbmf

__all__ = [
    "SVD",
    "SpatialSVD",
    "Tucker",
    "CP",
    "Decomposition",
    "Factorized",
    "Refusal",
    "Cost",
    "LayerSpec",
    "decompose",
    "check",
    "METHODS",
    "Decomposable",
    "decomposable",
    "decomposable_layers",
    "DecomposableLayers",
    "captured_layers",
    "method_of",
    "settings_of",
    "Call",
    "Use",
    "uses",
    "workload",
    "acts_as_base",
    "replace_layers",
    "RankRule",
    "ByHand",
    "ByRatio",
    "ByEnergy",
    "ByVBMF",
    "break_even",
    "choose_rank",
    "evbmf",
    "Evidence",
    "calibrate_rank",
    "ErrorCurve",
    "RankAllocation",
    "error_curve",
    "allocate_ranks",
    "Moments",
    "moments_of",
    "gather_moments",
    "gather_paired",
    "Slopes",
    "gather_slopes",
    "Metric",
    "Change",
    "Loss",
    "gather_losses",
]
