"""Calibration data on their way through the dense and the smaller program, a stage of layers at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, fx

from secateur.recover.paired import Steps
from secateur.recover.pairs import Pair
from secateur.recover.regression import Sums
from secateur.rewrite import Cut
from secateur.score.batches import Batch
from secateur.score.ranks import counted_before


class Sweep:
    """Runs calibration data through both programs and gathers sums for a stage of layers at a time, those of all processes."""

    def __init__(self, cut: Cut, program: fx.GraphModule, given: Sequence[Batch], held: bool) -> None:
        self.held = held
        self._programs = (cut.solution.walk.capture.program, program)
        self._given = given
        self._before, self._count = counted_before(len(given))
        self._open = [self._steps(b) for b in given] if held else []

    def _steps(self, batch: Batch) -> tuple[Steps, Steps]:
        dense, small = self._programs
        return Steps(dense, batch.leaves), Steps(small, batch.leaves)

    def sums(self, stage: Sequence[Pair]) -> list[list[Sums]]:
        """Sums for each layer of the stage, in two folds."""
        found = [[pair.empty(), pair.empty()] for pair in stage]
        for number, batch in enumerate(self._given):
            dense, small = self._open[number] if self.held else self._steps(batch)
            for pair, folds in zip(stage, found, strict=True):
                kept = self._watch(pair, dense, small, folds, number)
                if pair is not stage[-1]:
                    small.step(value=kept)
        return [[sums.shared() for sums in folds] for folds in found]

    def _watch(self, pair: Pair, dense: Steps, small: Steps, folds: Sequence[Sums], number: int) -> Tensor:
        dense.until(pair.dense.node)
        small.until(pair.small.node)
        source, inputs = dense.env[pair.dense.source], small.env[pair.small.source]
        outputs = pair.target(dense.step())
        if pair.residual is not None and (error := pair.residual.error(dense, small, pair.places)) is not None:
            outputs = outputs + error
        for fold, part in self._folds(number, len(outputs)):
            pair.gather(folds[fold], source[part], inputs[part], outputs[part])
        return outputs

    def _folds(self, number: int, length: int) -> Iterator[tuple[int, slice]]:
        """Whole batches in turn, counted over all processes, or the halves of the only one; samples that fill up a batch are left out."""
        batch = self._given[number]
        valid = max(1, length * batch.valid // batch.size)
        if self._count > 1:
            yield (self._before + number) % 2, slice(0, valid)
        else:
            yield 0, slice(0, valid - valid // 2)
            yield 1, slice(valid - valid // 2, valid)
