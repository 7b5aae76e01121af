"""Capture: a model as one flat graph of ATen calls, with what one run of it told."""

from secateur.capture.branches import training_branches, value_branches
from secateur.capture.capture import Capture, Fact, How
from secateur.capture.export import export
from secateur.capture.facts import CONSTANT_PREFIX, observe
from secateur.capture.given import capture
from secateur.capture.inputs import normalise_inputs
from secateur.capture.record import record
from secateur.capture.sources import load_inputs, load_model, parse_input

__all__ = [
    "CONSTANT_PREFIX",
    "Capture",
    "Fact",
    "How",
    "capture",
    "export",
    "load_inputs",
    "load_model",
    "normalise_inputs",
    "observe",
    "parse_input",
    "record",
    "training_branches",
    "value_branches",
]
