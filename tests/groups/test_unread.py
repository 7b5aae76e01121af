"""Positions of stored tables that the example inputs do not reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

READERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "slice": lambda table, count: table[:count],
    "later slice": lambda table, count: table.T[:, 2 : 2 + count].T,
    "index_select": lambda table, count: table.index_select(0, torch.arange(count)),
    "pad": lambda table, count: nn.functional.pad(table, (0, 0, 0, count - len(table))),
    "one of them": lambda table, count: table[2],
    "split": lambda table, count: table.split(count)[0],
    "expanded": lambda table, count: table.unsqueeze(0).expand(2, -1, -1)[:, :count],
}


class Positions(nn.Module):
    """A table with a row for each position, of which as many are read as there are tokens."""

    def __init__(self, read: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 6))
        self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x + self.read(self.table, x.shape[1])).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", READERS)
def test_rows_that_longer_inputs_would_read_stay(name: str) -> None:
    study = sc.study(Positions(READERS[name]).eval(), torch.randn(2, 5, 6))
    assert [layer.name for layer in study.layers if layer.prunable] == ["inner"]
    rows = next(d for d in study.coverage.dimensions if (d.tensor, d.dim) == ("table", 0))
    assert rows.prunable == 0
    result = sc.apply(study, study.plan(ratio=0.5))
    assert result.model(torch.randn(2, 9, 6)).shape == (2, 9, 3)


class Thirds(nn.Module):
    """Slices of one weight, all of which are read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(12, 6)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (x @ part.T for part in (self.weight[:4], self.weight[4:8], self.weight[8:]))
        return self.last(a * b + c)  # type: ignore[no-any-return]


def test_parts_that_are_read_in_turn_can_go() -> None:
    layers = sc.study(Thirds().eval(), torch.randn(2, 6)).layers
    assert [(layer.channels, layer.prunable) for layer in layers if layer.name != "last"] == [(4, True)]
