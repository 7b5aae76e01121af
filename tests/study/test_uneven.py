"""A word on widths that runtimes dislike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.pipeline import apply
from secateur.study import Study, study


@pytest.fixture(scope="module")
def found() -> Study:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.Flatten(), nn.Linear(64, 40))
    return study(nn.Sequential(*layers, nn.ReLU(), nn.Linear(40, 2)).eval(), torch.randn(1, 3, 2, 2))


def told(found: Study, **removed: int) -> list[str]:
    plan = found.plan(indices={name[1:]: list(range(count)) for name, count in removed.items()})
    return [note for note in apply(found, plan).notes if "no multiple of 4" in note]


def test_wide_convolutions_of_odd_width_are_named(found: Study) -> None:
    (note,) = told(found, _0=3, _2=4, _4=1)
    assert note.startswith("1 of 2 wide convolutions keep a number of channels that is no multiple of 4 (0: 61); ONNX Runtime")
    assert told(found, _0=3, _2=1)[0].startswith(
        "2 of 2 wide convolutions keep a number of channels that is no multiple of 4 (0: 61, 2: 31);"
    )


def test_even_widths_narrow_layers_and_matrices_are_not(found: Study) -> None:
    assert told(found, _0=4, _2=8) == []
    assert told(found, _4=1, _6=1) == []
