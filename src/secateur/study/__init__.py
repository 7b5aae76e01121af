"""Study a model: what can be cut or factorized, what cannot and why, and plans for it. Nothing is changed."""

from secateur.study.calibration import Calibration, calibration
from secateur.study.stages import Carried, carry_out
from secateur.study.study import Study, study

__all__ = ["Calibration", "Carried", "Study", "calibration", "carry_out", "study"]
