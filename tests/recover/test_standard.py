"""What is done where nobody says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import SelectionError
from secateur.pipeline import compress
from secateur.recover import Refit
from secateur.score import Signal
from secateur.study import study
from secateur.target import Target


class Detector(nn.Module):
    """As many rows as its weights find."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(torch.relu(self.norm(self.conv(x)))).flatten(2).mT.flatten(0, 1)
        return found[found[:, 0] > 0]


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_model_whose_weights_decide_gets_statistics_and_no_refit() -> None:
    result = compress(Detector().eval(), IMAGES, target=Target(macs=0.6), data=[IMAGES, IMAGES + 1], latency=False)
    assert result.plan.settings["criterion"] == repr(Signal())
    assert any("depends on its weights" in note for note in result.notes)
    assert any("batch-norm statistics (shifted)" in note for note in result.notes)


def test_a_refit_of_it_is_refused() -> None:
    found = study(Detector().eval(), IMAGES)
    plan = found.plan(ratio=0.5)
    with pytest.raises(SelectionError, match="depends on its weights"):
        Refit()(Detector().eval(), found.cut(plan), [IMAGES])


def test_statistics_that_cannot_be_taken_lose_no_result() -> None:
    one = IMAGES[:1, :, :3, :3]
    result = compress(Detector().eval(), one, target=Target(macs=0.6), data=[one], latency=False)
    assert result.proof.holds
    assert any(note.startswith("nothing was recovered by batch norm") for note in result.notes)
    assert not result.model.norm.running_mean.any()
