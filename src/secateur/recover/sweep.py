"""Calibration data on their way through the dense and the smaller program, a stage of layers at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, fx

from secateur.recover.paired import Steps
from secateur.recover.pairs import Pair
from secateur.recover.regression import Rows, Sums
from secateur.recover.stages import Stage
from secateur.rewrite import Cut
from secateur.score.batches import Batch
from secateur.score.ranks import counted_before


class Sweep:
    """Runs calibration data through both programs and gathers sums for a stage of layers at a time, those of all processes."""

    def __init__(self, cut: Cut, program: fx.GraphModule, given: Sequence[Batch]) -> None:
        dense = cut.solution.walk.capture.program
        self._given = given
        self._before, self._count = counted_before(len(given))
        self._open = [(Steps(dense, batch.leaves), Steps(program, batch.leaves)) for batch in given]

    def sums(self, stage: Stage) -> list[list[Sums]]:
        """Sums for each layer of the stage, in two folds."""
        found = [[Rows(pair.empty(), len(stage.pairs)) for _ in range(2)] for pair in stage.pairs]
        for number, (dense, small) in enumerate(self._open):
            runs = (dense, small) if stage.held else (dense.fork(), small.fork())
            for pair, folds in zip(stage.pairs, found, strict=True):
                outputs, lacking = self._watch(pair, *runs, folds, number)
                if pair is not stage.pairs[-1]:
                    runs[1].step(value=pair.target(outputs, lacking))
        return [[rows.sums().shared() for rows in folds] for folds in found]

    def _watch(self, pair: Pair, dense: Steps, small: Steps, folds: Sequence[Rows], number: int) -> tuple[Tensor, Tensor | None]:
        dense.until(pair.dense.node)
        small.until(pair.small.node)
        source, inputs, outputs = dense.env[pair.dense.source], small.env[pair.small.source], dense.step()
        lacking = None if pair.residual is None else pair.residual.error(dense, small, pair.places)
        for fold, part in self._folds(number, len(outputs)):
            rest = None if lacking is None else lacking[part]
            pair.gather(folds[fold], self._before + number, source[part], inputs[part], outputs[part], rest)
        return outputs, lacking

    def _folds(self, number: int, length: int) -> Iterator[tuple[int, slice]]:
        """Whole batches in turn, counted over all processes, or the halves of the only one; samples that fill up a batch are left out."""
        batch = self._given[number]
        valid = max(1, length * batch.valid // batch.size)
        if self._count > 1:
            yield (self._before + number) % 2, slice(0, valid)
        else:
            yield 0, slice(0, valid - valid // 2)
            yield 1, slice(valid - valid // 2, valid)
