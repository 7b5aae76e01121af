"""A budget: what may remain of the dense model, and the ratio that reaches it."""

from secateur.target.candidates import Candidates
from secateur.target.latency import Forecast, LatencySearch, Stopwatch
from secateur.target.predicted import PredictedLatency, Shrinking
from secateur.target.search import Reached, closest, reach
from secateur.target.sizes import remaining
from secateur.target.target import Quantity, Runtime, Target

__all__ = [
    "Candidates",
    "Forecast",
    "LatencySearch",
    "PredictedLatency",
    "Quantity",
    "Reached",
    "Runtime",
    "Shrinking",
    "Stopwatch",
    "Target",
    "closest",
    "reach",
    "remaining",
]
