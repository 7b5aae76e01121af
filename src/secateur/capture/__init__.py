"""Capture: a model as one flat graph of ATen calls, with what one run of it told."""

from secateur.capture.capture import Capture, Fact, How
from secateur.capture.facts import CONSTANT_PREFIX, observe
from secateur.capture.record import record

__all__ = ["CONSTANT_PREFIX", "Capture", "Fact", "How", "observe", "record"]
