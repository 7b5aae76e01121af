"""Win back what the cut cost."""

from secateur.recover.batchnorm import reestimate_batch_norm
from secateur.recover.recovery import Change, Recovered, Recovery
from secateur.recover.refit import Refit

__all__ = ["Change", "Recovered", "Recovery", "Refit", "reestimate_batch_norm"]
