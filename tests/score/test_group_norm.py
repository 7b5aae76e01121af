"""Norms of all weights of a channel, by hand."""

from __future__ import annotations

import torch
from torch import nn

from score.by_hand import solved
from secateur.score import Combine, GroupNorm, gather, score_groups


def test_makers_and_readers_count_by_their_share_of_the_mean() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4], [0, 5]]))
        model[0].bias.copy_(torch.tensor([100.0, 0]))
        model[2].weight.copy_(torch.tensor([[1.0, 3], [0, 0], [0, 0]]))
    solution, groups = solved(model, torch.randn(4, 2, dtype=torch.float64))
    (found,) = score_groups(GroupNorm(), groups, gather(solution, combine=Combine(layer_norm="none"))).values()
    # Rows have squares 25 and 25, columns 1 and 9, of which 5 is the mean; biases do not count.
    torch.testing.assert_close(found, torch.tensor([1 + 0.2, 1 + 1.8], dtype=torch.float64))
