"""Whole heads: which of them can go, and everything that goes with them."""

from __future__ import annotations

import pytest
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


class Dealt(nn.Module):
    """Grouped convolutions on both sides of a shuffle that deals channels out unevenly: 12 of 3 groups to 3 others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv1d(3, 12, 1, groups=3), nn.Conv1d(12, 12, 1, groups=3), nn.Conv1d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(F.channel_shuffle(self.first(x), 3)))


def test_groups_that_only_all_together_could_go_say_so() -> None:
    found = study(Dealt(), torch.randn(2, 3, 5))
    stays = {g.name: str(g.reason) for g in found.groups if not g.prunable}
    assert set(stays) == {"first", "first.groups", "last"}
    assert "equal numbers must go from each of its rows" in stays["first"]
    assert "equal numbers must go from each of its rows" in stays["first.groups"]
    plan = found.plan(ratio=0.5)
    assert (plan.ratios, plan.settings["notes"]) == ({"second": 0.5}, [])


def test_channels_that_all_go_together_stay() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    found = study(model, torch.randn(2, 2, 3, 3))
    assert [(g.name, g.size, g.prunable) for g in found.groups] == [("0", 1, False), ("2", 4, True), ("3", 2, False)]
    assert "go together" in str(found.groups[0].reason)


def test_one_channel_for_each_group_of_a_convolution_goes_with_the_group() -> None:
    found = study(nn.Sequential(nn.Conv1d(2, 8, 1), nn.Conv1d(8, 4, 1, groups=4), nn.Conv1d(4, 2, 1)), torch.randn(2, 2, 5))
    assert [(g.name, g.kind, g.prunable) for g in found.groups] == [
        ("0", "channels", True),
        ("0.groups", "blocks", True),
        ("1", "channels", False),
        ("2", "channels", False),
    ]
    assert {d.prunable for d in found.coverage.dimensions if (d.tensor, d.dim) == ("1.weight", 0)} == {4}


class _Twice(nn.Module):
    """The same channels as two heads of four and as four heads of two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.wide, self.narrow = nn.Parameter(torch.randn(2, 1)), nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the heads of either kind."""
        x = self.first(x).unflatten(-1, (2, 4)).softmax(-2) * self.wide
        x = x.flatten(-2).unflatten(-1, (4, 2)) * self.narrow
        out: Tensor = self.last(x.flatten(-2))
        return out


def test_rows_of_another_length_are_other_rows() -> None:
    found = study(_Twice().eval(), torch.randn(2, 4))
    assert rewrite(found.cut(found.plan(ratio=0.5))).proof.holds


class _Sides(nn.Module):
    """Expected values over bins, one a head, beside plain channels, as detectors give the sides of boxes."""

    def __init__(self, *, ends: bool) -> None:
        super().__init__()
        self.bins, self.plain, self.last = nn.Linear(4, 32), nn.Linear(4, 3), nn.Linear(7, 2)
        self.ends = ends

    def forward(self, x: Tensor) -> Tensor:
        """Join heads without channels with channels."""
        sides = self.bins(x).unflatten(-1, (4, 8)).softmax(-1) @ torch.arange(8.0)
        joined = torch.cat([sides, self.plain(x)], -1)
        out: Tensor = joined if self.ends else self.last(joined)
        return out


def test_heads_joined_with_channels_reach_the_output() -> None:
    found = study(_Sides(ends=True).eval(), torch.randn(2, 4))
    assert not any(g.prunable for g in found.groups)


def test_heads_joined_with_channels_go() -> None:
    found = study(_Sides(ends=False).eval(), torch.randn(2, 4))
    heads = next(g for g in found.groups if g.kind == "blocks")
    cut = found.cut(found.plan(indices={heads.name: [1], "plain": [0, 2]}))
    model = rewrite(cut, prefer="graph").model
    assert dict(model.named_parameters())["last.weight"].shape == (2, 4)


class _Read(nn.Module):
    """Heads without channels that a layer reads as channels."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.bins, self.reader, self.last = nn.Linear(4, 32), reader, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Give one value a head to the reader."""
        sides = self.bins(x).unflatten(-1, (4, 8)).softmax(-1) @ torch.arange(8.0)
        out = self.reader(sides)
        joined: Tensor = self.last(torch.cat([out[0] if isinstance(out, tuple) else out] * (1 if isinstance(out, tuple) else 2), -1))
        return joined


@pytest.mark.parametrize("reader", [nn.GroupNorm(1, 4), nn.GroupNorm(2, 4), nn.LSTM(4, 8)], ids=["norm", "norm of groups", "lstm"])
def test_heads_that_are_read_as_channels_go(reader: nn.Module) -> None:
    found = study(_Read(reader).eval(), torch.randn(6, 4))
    heads = next(g for g in found.groups if g.kind == "blocks" and "bins" in " ".join(m.tensor for m in g.members))
    proof = rewrite(found.cut(found.plan(indices={heads.name: [1, 2]}))).proof
    assert proof.holds


class _Rows(nn.Module):
    """Rows of a head, made by a softmax over what they hold, lie along a dimension that a layer which reads the heads slides over."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Linear(6, 4 * 6 * 5), nn.Conv1d(4, 10, 1)

    def forward(self, x: Tensor, values: Tensor) -> Tensor:
        """Add a sum along other rows to each."""
        rows = self.make(x).view(-1, 4, 6, 5).softmax(-1) @ values[:, None]
        return self.read(rows[..., 0]) + values.sum((1, 2))[:, None, None] * torch.ones(6)


def test_rows_of_heads_that_are_summed_over_stay() -> None:
    found = study(_Rows().eval(), (torch.randn(2, 6), torch.randn(2, 5, 7)))
    assert not any(g.prunable for g in found.groups if g.name.startswith("make"))
