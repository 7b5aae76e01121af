from __future__ import annotations

import torch

from score.by_hand import group, member
from secateur.score.blocks import block_scores, inside

QK = group("qk", 4, cells=[0, 0, 1, 1], members=[member("w", [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 0, 1, 2, 3], length=12)])
VALUES = group("v", 4, cells=[0, 0, 1, 1], members=[member("w", [8, 9, 10, 11], length=12), member("o", [0, 1, 2, 3], dim=1, role="reads")])
OTHER = group("mlp", 4)
HEADS = group(
    "heads",
    2,
    kind="blocks",
    members=[
        member("w", range(12), [0, 0, 1, 1] * 3),
        member("o", range(4), [0, 0, 1, 1], dim=1, role="reads"),
    ],
)
SCORES = {
    "qk": torch.tensor([1.0, 3.0, 5.0, 7.0]),
    "v": torch.tensor([10.0, 20.0, 30.0, 40.0]),
    "mlp": torch.tensor([9.0, 9.0, 9.0, 9.0]),
}


def test_channels_are_found_inside_their_blocks() -> None:
    channels, blocks = inside(HEADS, QK)
    assert list(zip(channels.tolist(), blocks.tolist(), strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert inside(HEADS, OTHER)[0].size == 0


def test_blocks_take_the_mean_or_the_sum_of_their_channels() -> None:
    groups = [QK, VALUES, OTHER]
    assert block_scores(HEADS, groups, SCORES, "sum").tolist() == [34, 82]
    for policy in ("average", "none", "count"):
        assert block_scores(HEADS, groups, SCORES, policy).tolist() == [(2 + 15) / 2, (6 + 35) / 2]


def test_a_channel_that_all_heads_share_speaks_for_each() -> None:
    shared = group("rotary", 2, members=[member("w", [0, 1, 2, 3], [0, 1, 0, 1], length=12)])
    assert block_scores(HEADS, [shared], {"rotary": torch.tensor([1.0, 3.0])}, "average").tolist() == [2, 2]
