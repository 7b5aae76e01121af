"""What is done where nobody says what to do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from secateur.capture.decisions import weights_decide
from secateur.errors import SelectionError
from secateur.recover.batchnorm import BatchNorm
from secateur.recover.means import FoldMeans
from secateur.recover.recovery import Recovered
from secateur.recover.refit import Refit
from secateur.rewrite import Cut
from secateur.score.batches import Data


@dataclass(frozen=True)
class Standard:
    """Refit with data; where no layer can be refitted, move batch-norm statistics; without data fold the means of what is gone.

    A model whose weights decide what is called, such as a detector, is not refitted: its graph holds for the example inputs alone.

    Batch norm is left alone after a refit: the refit has brought its inputs back to what its statistics were made for.
    """

    samples: int | None = 256
    """Use so many samples at most."""

    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Recover in place."""
        if data is None:
            return FoldMeans()(model, cut)
        if weights_decide(cut.solution.walk.capture):
            return self._batch_norm(model, cut, data)
        refitted = Refit(samples=self.samples)(model, cut, data)
        return refitted if refitted.changes else self._batch_norm(model, cut, data)

    def _batch_norm(self, model: nn.Module, cut: Cut, data: Data) -> Recovered:
        try:
            return BatchNorm(samples=self.samples)(model, cut, data)
        except SelectionError as error:
            return Recovered("batch norm", skipped={"all layers": str(error)})


@dataclass(frozen=True)
class Nothing:
    """Leave all values as the cut has left them."""

    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Change nothing."""
        return Recovered("nothing")
