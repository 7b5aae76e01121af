"""Mixing whole heads, against the matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.recover.mixture import Mixture


def heads(*shapes: tuple[int, int]) -> Tensor:
    return torch.block_diag(*(torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)))


MATRICES = [
    heads((2, 3), (2, 3), (1, 4)),
    heads((3, 3), (1, 1), (1, 1)),
    torch.eye(5)[[3, 0, 4]],
    torch.zeros(2, 3),
    heads((2, 3)).double(),
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_it_computes_what_the_matrix_does(matrix: Tensor) -> None:
    mixed = matrix[torch.randperm(len(matrix), generator=torch.Generator().manual_seed(1))]
    values = torch.randn(2, 4, matrix.shape[1])
    torch.testing.assert_close(Mixture.of(mixed)(values), values @ mixed.float().T)


def test_heads_of_one_shape_are_one_block() -> None:
    assert [entries.shape for _, entries in Mixture.of(heads((2, 3), (2, 3), (1, 4))).blocks] == [(1, 1, 4), (2, 2, 3)]
