"""A run of a model ends in time."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from torch import Tensor, nn

from secateur.capture.export import export
from secateur.capture.limit import time_limit


class Slow(nn.Module):
    """Takes its time where the size of images is open."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if not isinstance(x.shape[2], int):
            time.sleep(0.3)
        return self.last(x)


def test_a_module_that_begins_too_late_is_not_run() -> None:
    with pytest.raises(TimeoutError, match=r"longer than 0\.01 seconds"), time_limit(0.01):
        nn.Sequential(nn.Identity(), Sleeping(), nn.Identity())(torch.ones(1))


class Sleeping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.05)
        return x


def test_what_ends_in_time_is_left_alone() -> None:
    with time_limit(60.0):
        assert Sleeping()(torch.ones(1)) == 1
    with time_limit(0.01):
        pass
    time.sleep(0.05)
    assert Sleeping()(torch.ones(1)) == 1


def test_sizes_that_take_too_long_are_fixed_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Slow().eval(), torch.randn(2, 3, 8, 8)
    assert export(model, (x,), {}, dynamic=True).program(torch.randn(2, 3, 9, 9))[0].shape == (2, 4, 7, 7)
    monkeypatch.setattr(sys.modules["secateur.capture.export"], "LONGEST_S", 0.2)
    capture = export(model, (x,), {}, dynamic=True)
    assert any("input sizes free: it took longer than" in note for note in capture.notes)
    assert capture.program(torch.randn(5, 3, 8, 8))[0].shape == (5, 4, 6, 6)
