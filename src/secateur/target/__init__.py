"""A budget: what may remain of the dense model, and the ratio that reaches it."""

from secateur.target.candidates import Candidates
from secateur.target.latency import Stopwatch
from secateur.target.search import reach
from secateur.target.sizes import remaining
from secateur.target.target import Target

__all__ = ["Candidates", "Stopwatch", "Target", "reach", "remaining"]
