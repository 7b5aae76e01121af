from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from secateur.score import LayerNorm, normalize

HOWS = get_args(LayerNorm)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("standard_score", [-math.sqrt(1.5), 0.0, math.sqrt(1.5)]),
        ("tss_norm", [1 / 6, 2 / 6, 3 / 6]),
        ("linear_scaling", [0.0, 0.5, 1.0]),
        ("softmax_norm", [math.exp(k) / (math.e + math.e**2 + math.e**3) for k in (1, 2, 3)]),
        ("none", [1.0, 2.0, 3.0]),
    ],
)
def test_values_by_hand(how: LayerNorm, expected: list[float]) -> None:
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(normalize(scores, how), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("how", "value", "expected"),
    [
        ("standard_score", 0.1, 0.0),
        ("tss_norm", 0.0, 0.25),
        ("linear_scaling", 3.0, 0.0),
        ("softmax_norm", 1000.0, 0.25),
        ("none", 2.0, 2.0),
    ],
)
def test_equal_scores_stay_equal_and_finite(how: LayerNorm, value: float, expected: float) -> None:
    scores = torch.full((4,), value, dtype=torch.float64)
    assert normalize(scores, how).tolist() == [expected] * 4


@pytest.mark.parametrize("how", HOWS)
def test_the_order_within_a_layer_stays(how: LayerNorm) -> None:
    scores = torch.rand(50, dtype=torch.float64)
    assert normalize(scores, how).argsort().tolist() == scores.argsort().tolist()


@pytest.mark.parametrize("how", HOWS)
def test_one_channel_has_a_finite_score(how: LayerNorm) -> None:
    assert torch.isfinite(normalize(torch.tensor([5.0]), how)).all()
