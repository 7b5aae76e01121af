"""Secateur makes trained neural networks smaller and faster, and proves that what it did is right."""

from importlib.metadata import version as _version

from secateur.allocate import GlobalRank, Isomorphic, Knapsack, Options, Slamp, Uniform
from secateur.capture.onnx import OnnxModel, load_onnx
from secateur.decompose import CP, SVD, ByEnergy, ByRatio, ByVBMF, SpatialSVD, Tucker
from secateur.errors import (
    CaptureError,
    FileError,
    MissingExtraError,
    ModelError,
    PlanError,
    ProofError,
    RewriteError,
    SecateurError,
    SelectionError,
    TrainingError,
    UsageError,
)
from secateur.export import load
from secateur.iterative import Iterated, Iterative
from secateur.layers import Layer, Layers
from secateur.pipeline import apply, compress
from secateur.plan import Factorize, Plan, Prune
from secateur.recover import Attention, BatchNorm, FoldMeans, Merge, Nothing, Refit, Standard, reestimate_batch_norm
from secateur.result import Result
from secateur.rewrite import Proof
from secateur.score import L2, OBS, SNP, Fisher, GeometricMedian, GroupNorm, Index, NuclearNorm, Random, Signal, Taylor, Variance
from secateur.study import Study, study
from secateur.study.cheaper import Cheaper
from secateur.study.wish import Decompose
from secateur.sweep import Sensitivity, Sweep, sensitivity, sweep
from secateur.target import Target
from secateur.tune import Distillation, FineTune, Tuned

__version__ = _version("secateur")

__all__ = [
    "Attention",
    "ByEnergy",
    "ByRatio",
    "ByVBMF",
    "CP",
    "BatchNorm",
    "CaptureError",
    "Cheaper",
    "Decompose",
    "Distillation",
    "Factorize",
    "FileError",
    "FineTune",
    "Fisher",
    "FoldMeans",
    "GeometricMedian",
    "GlobalRank",
    "GroupNorm",
    "Index",
    "Isomorphic",
    "Iterated",
    "Iterative",
    "Knapsack",
    "L2",
    "Layer",
    "Layers",
    "Merge",
    "MissingExtraError",
    "ModelError",
    "Nothing",
    "NuclearNorm",
    "OBS",
    "OnnxModel",
    "Options",
    "Plan",
    "PlanError",
    "Proof",
    "ProofError",
    "Prune",
    "Random",
    "Refit",
    "Result",
    "RewriteError",
    "SNP",
    "SVD",
    "SecateurError",
    "SelectionError",
    "Sensitivity",
    "Signal",
    "Slamp",
    "SpatialSVD",
    "Standard",
    "Study",
    "Sweep",
    "Target",
    "Taylor",
    "TrainingError",
    "Tucker",
    "Tuned",
    "Uniform",
    "UsageError",
    "Variance",
    "apply",
    "compress",
    "load",
    "load_onnx",
    "reestimate_batch_norm",
    "sensitivity",
    "study",
    "sweep",
]
