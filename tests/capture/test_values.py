"""Which captured graphs speak for other inputs too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.capture import record
from secateur.capture.values import depends_on_values


class Called(nn.Module):
    """A function as a model, with a table of its own."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("table", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.table)


@pytest.mark.parametrize(
    ("function", "depends"),
    [
        (lambda x, table: torch.masked_select(x, x > 0), True),
        (lambda x, table: x.nonzero().double(), True),
        (lambda x, table: x[x > 0], True),
        (lambda x, table: torch.where(x > 0)[0].double(), True),
        (lambda x, table: torch.where(x > 0, x, 0.0), False),
        (lambda x, table: x[table], False),
        (lambda x, table: x[x.argsort(0)[:, 0]], False),
        (lambda x, table: x * int(table[0]), False),
        (lambda x, table: torch.relu(x) @ x, False),
    ],
)
def test_looking_at_values_is_seen(function: Callable[[Tensor, Tensor], Tensor], depends: bool) -> None:
    capture = record(Called(function), (torch.randn(3, 3),))
    assert depends_on_values(capture.graph) is depends
