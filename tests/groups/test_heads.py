"""Whole heads: which of them can go, and everything that goes with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.groups import ChannelGroup
from secateur.rewrite import rewrite
from secateur.study import Study, study


class Interleaved(nn.Module):
    """A fused projection of which every head has its own query, key and value side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 4, 3, 4).transpose(1, 2).unbind(3)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Sloped(nn.Module):
    """A number for each head and one for each pair of heads, added to or mixed into the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v, self.out = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 3)
        self.slope, self.mix = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        qk, v = (layer(x).view(*x.shape[:2], 4, 3).transpose(1, 2) for layer in (self.qk, self.v))
        scores = torch.einsum("bhqk,gh->bgqk", qk @ qk.mT + self.slope, self.mix).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


def heads(found: Study) -> list[ChannelGroup]:
    return [g for g in found.groups if g.kind == "blocks" and g.prunable]


def places(group: ChannelGroup) -> dict[tuple[str, int], list[int]]:
    """The head at each position of each member."""
    return {(m.tensor, m.dim): m.channels.tolist() for m in group.members}


def test_a_head_that_holds_rows_of_its_own_can_go_alone() -> None:
    found = study(Interleaved(), torch.randn(2, 5, 4))
    (group,) = heads(found)
    assert (group.layout, group.take) == ("4", (1,))
    assert places(group)["qkv.weight", 0] == [h for h in range(4) for _ in range(12)]
    result = rewrite(found.cut(found.plan(indices={group.name: [1]})), prefer="graph")
    assert result.model.get_parameter("qkv.weight").shape == (36, 4)
    assert result.model.get_parameter("out.weight").shape == (3, 12)


def test_a_weight_with_one_position_for_each_head_is_a_member_of_the_heads() -> None:
    found = study(Sloped(), torch.randn(2, 5, 4))
    before, after = heads(found)
    assert places(before)["slope", 0] == places(before)["mix", 1] == [0, 1, 2, 3]
    assert places(after)["mix", 0] == [0, 1, 2, 3]
    assert "slope" not in {m.tensor for m in after.members}
    assert all(d.reason is None for d in found.coverage.dimensions if d.tensor == "mix" or (d.tensor, d.dim) == ("slope", 0))
