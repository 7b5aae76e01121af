"""Fit the layers that read what is left anew, so that their outputs stay as near to the dense model's as they can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from secateur.capture.decisions import weights_decide
from secateur.errors import SelectionError
from secateur.recover.attention import Attention, Bases
from secateur.recover.pairs import Scope, pairs_of
from secateur.recover.recovery import Recovered, load_values, own_tensors, write_back
from secateur.recover.regression import RIDGES, USUAL
from secateur.recover.stages import stages_of
from secateur.recover.sweep import Sweep
from secateur.rewrite import Cut
from secateur.rewrite.graph import rewrite_graph
from secateur.score.batches import Data, batches
from secateur.score.progress import with_progress
from secateur.score.ranks import check_samples

GIB = 1 << 30


@dataclass(frozen=True)
class Refit:
    """Refit in closed form what reads pruned channels: inputs of the compressed model, outputs of the dense one.

        min_{W', b'} E ||W x + b - W' x' - b'||^2 + ridge mean(var x') ||W' - W_kept||^2

    with x the dense model's inputs of a layer and x' those that the compressed model gives it. Layers are fitted in the
    order of the graph, so that x' has all earlier fits in it. Where a layer's outputs are added to others that were computed
    before, as at the end of a residual block, the error of these is added to the target. A batch norm right behind a layer
    without bias takes up the shift in its running mean; where nothing can, moments are taken about zero.

    Memory: only second moments are gathered, ``(in * taps)^2`` numbers a layer. A convolution with more than
    ``patch_limit`` inputs times taps is fitted by the covariance of its channels, the same for all taps. All samples stop at
    a layer until it is fitted, where the activations that wait for use take ``memory_gib`` at most. Where they take more,
    as in the first layers of a network for images, the samples stay where they stopped last and run on from there ``passes``
    times at most, each time for a run of layers that are fitted together, each on inputs from the dense model's outputs of
    the one before.

    He, Zhang, Sun, ICCV 2017 (least squares on the kept inputs; sums of branches).

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(64, 4)
        >>> study = sc.study(model, x)
        >>> plan = study.plan(ratio=0.5)
        >>> result = sc.apply(study, plan)
        >>> change = Refit()(result.model, study.cut(plan), x).changes["2"]
        >>> change.after < change.before
        True
    """

    ridge: float | None = None
    """The same ridge for all layers; by default each layer's is the best on one half of the batches, fitted to the other."""
    scope: Scope = "all"
    """Fit all layers from the first on that lost inputs, since they see what went wrong before, or only those that lost inputs."""
    samples: int | None = 256
    """Use so many samples at most."""
    patch_limit: int = 2304
    """Inputs times taps up to which a convolution is fitted tap by tap."""
    memory_gib: float = 2.0
    """Hold activations between fits if they take no more than this."""
    passes: int = 4
    """Run the samples so often through layers between which activations are not held."""
    evidence: int | None = 32
    """Fit a layer to so many rows for each of its inputs times taps, and 16,384 in all, at positions (tokens) drawn at random, where there
    are more: neighbours tell much the same. To all if ``None``."""
    basis: Literal["best", "kept", "as cut"] = "best"
    """First give thinner heads the basis that :class:`Attention` says, and fit what follows to it; or leave them as cut."""

    @torch.no_grad()
    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Fit in place; raises :class:`~secateur.errors.SelectionError` without data."""
        if data is None:
            raise SelectionError(f"{self} needs calibration data: give some batches with data=...")
        capture = cut.solution.walk.capture
        if weights_decide(capture):
            raise SelectionError(
                "What this model calls depends on its weights, so that its graph holds for the example inputs alone and cannot be fitted to"
                " others. Take BatchNorm(), or Standard(), which does."
            )
        program = rewrite_graph(cut)
        load_values(program, model)
        given = list(batches(data, capture, samples=self.samples))
        seen = check_samples(sum(b.valid for b in given))
        bases = Bases() if self.basis == "as cut" else Attention(self.basis, evidence=self.evidence).bases(cut, given)
        write_back(bases.values, program, capture)
        pairs, skipped = pairs_of(cut, program, self.scope, self.patch_limit, bases.transforms)
        pairs = [pair.thinned(self.evidence, seen) for pair in pairs]
        stages, sweep = stages_of(pairs, cut, len(given), self.memory_gib * GIB, self.passes), Sweep(cut, program, given)
        changes, first = dict(bases.changes), USUAL
        for stage in with_progress(stages, "Fitting layers", len(stages)):
            for pair, folds in zip(stage.pairs, sweep.sums(stage), strict=True):
                found = pair.settle(folds, self.ridge, first)
                changes[pair.layer], first = pair.change(found), found.ridge if found.ridge in RIDGES else USUAL
        touched = {name for pair in pairs for name in pair.names} | set(bases.values)
        write_back({n: t for n, t in own_tensors(program).items() if n in touched}, model, capture)
        return Recovered("refit", changes, {**bases.skipped, **skipped}, seen if changes else 0)
