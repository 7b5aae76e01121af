"""Cut one model in many ways, and see what each costs: sweeps over targets, and the sensitivity of each group."""

from secateur.sweep.front import pareto
from secateur.sweep.metric import Evaluate, FidelityTo
from secateur.sweep.points import Missed, Point, Sweep
from secateur.sweep.run import sweep
from secateur.sweep.sensitivity import GroupCut, Sensitivity, sensitivity
from secateur.sweep.trial import Dense, Trial, Trials

__all__ = [
    "Dense",
    "Evaluate",
    "FidelityTo",
    "GroupCut",
    "Missed",
    "Point",
    "Sensitivity",
    "Sweep",
    "Trial",
    "Trials",
    "pareto",
    "sensitivity",
    "sweep",
]
