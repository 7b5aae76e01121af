from __future__ import annotations

import pytest
import torch

from secateur.score import equal_rows as module
from secateur.score.equal_rows import equal_rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_row_names_the_first_that_equals_it(dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 2], [2, 1], [1, 2], [-1, 2], [2, 1], [3, 0], [1, 2]], dtype=dtype)
    first, kind = equal_rows(rows)
    assert first.tolist() == [0, 1, 3, 5]
    assert kind.tolist() == [0, 1, 0, 2, 1, 3, 0]


def test_more_equal_rows_than_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEW", 3)
    rows = torch.eye(4)[torch.arange(40) % 4]
    first, kind = equal_rows(rows)
    assert first.tolist() == [0, 1, 2, 3]
    assert kind.tolist() == [n % 4 for n in range(40)]


def test_rows_that_share_a_number_by_chance_count_as_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_first_alike", lambda rows, shared: torch.zeros_like(shared))
    assert equal_rows(torch.eye(3))[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(0, 3), (1, 3)])
def test_few_rows(shape: tuple[int, int]) -> None:
    assert equal_rows(torch.ones(shape))[1].tolist() == [0] * shape[0]
