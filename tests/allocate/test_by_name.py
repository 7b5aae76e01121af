from __future__ import annotations

import pytest
import torch
from torch import Tensor

from score.by_hand import group, member
from secateur.allocate import Allocation, Options, allocate
from secateur.errors import SelectionError
from secateur.plan import Prune

STREAM = group(
    "layer1.add",
    4,
    members=[member("layer1.0.conv.weight", range(4)), member("layer1.1.conv.weight", range(4), [3, 2, 1, 0])],
    aliases=["layer1.0.conv", "layer1.0.conv.weight", "layer1.1.conv", "layer1.1.conv.weight"],
)
INNER = group("layer1.inner", 4, aliases=["layer1.inner.weight"])
QKV = "attn.qkv.weight"
QK = group("attn.qk", 4, cells=[0, 0, 1, 1], aliases=["attn.qkv"], members=[member(QKV, range(8), [0, 1, 2, 3, 0, 1, 2, 3], length=12)])
VALUES = group(
    "attn.v",
    4,
    cells=[0, 0, 1, 1],
    aliases=["attn.qkv"],
    members=[member(QKV, range(8, 12), length=12), member("attn.out.weight", range(4), dim=1, role="reads")],
)
HEADS = group(
    "attn.heads",
    2,
    kind="blocks",
    members=[member(QKV, range(12), [0, 0, 1, 1] * 3), member("attn.out.weight", range(4), [0, 0, 1, 1], dim=1, role="reads")],
)
FC = group("fc", 3, reason="reaches the model's output")
GROUPS = [STREAM, INNER, QK, VALUES, HEADS, FC]


def scores() -> dict[str, Tensor]:
    return {g.name: torch.arange(float(g.size)) for g in GROUPS}


def counts(found: Allocation) -> dict[str, int]:
    return {name: len(channels) for name, channels in found.remove.items()}


def by_ratios(ratios: dict[str, float], **wishes: object) -> dict[str, int]:
    return counts(allocate(GROUPS, scores(), ratios=ratios, **wishes))  # type: ignore[arg-type]


def by_indices(indices: dict[str, list[int]], **wishes: object) -> dict[str, tuple[int, ...]]:
    return dict(allocate(GROUPS, {}, indices=indices, **wishes).remove)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({"layer1.inner": 0.5}, {"layer1.inner": 2}),
        ({"layer1.*": 0.5}, {"layer1.add": 2, "layer1.inner": 2}),
        ({"layer1.*": 0.5, "layer1.inner": 0.25}, {"layer1.add": 2, "layer1.inner": 1}),
        ({"layer1.inner": 0.25, "layer1.*": 0.5}, {"layer1.add": 2, "layer1.inner": 1}),
        ({"layer1.*": 0.5, "*.inner": 0.75}, {"layer1.add": 2, "layer1.inner": 3}),
        ({"*.inner": 0.75, "layer1.*": 0.5}, {"layer1.add": 2, "layer1.inner": 2}),
        ({"layer1.1.conv": 0.5}, {"layer1.add": 2}),
        ({"layer1.?.conv.weight": 0.5}, {"layer1.add": 2}),
        ({"attn.qkv": 0.5}, {"attn.qk": 2, "attn.v": 2}),
        ({"layer1.inner": 0.0}, {}),
        ({"*": 0.5}, {"layer1.add": 2, "layer1.inner": 2, "attn.qk": 2, "attn.v": 2}),
        ({"attn.*": 0.5}, {"attn.qk": 2, "attn.v": 2}),
        ({"*.heads": 0.5}, {"attn.heads": 1}),
        ({"attn.heads": 0.5}, {"attn.heads": 1}),
        ({"attn.heads": 0.5, "attn.*": 0.5}, {"attn.heads": 1, "attn.qk": 1, "attn.v": 1}),
    ],
)
def test_the_most_specific_name_wins(ratios: dict[str, float], expected: dict[str, int]) -> None:
    assert by_ratios(ratios) == expected


def test_a_ratio_for_all_leaves_named_layers_to_their_own() -> None:
    expected = {"layer1.add": 2, "attn.qk": 2, "attn.v": 2}
    assert by_ratios({"layer1.inner": 0.0}, ratio=0.5) == expected
    assert by_ratios({"layer1.inner": 0.75}, ratio=0.5) == {**expected, "layer1.inner": 3}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer1.iner", r"No layer matches 'layer1\.iner'\. Did you mean 'layer1\.inner'"),
        ("stage*", "No layer matches"),
        ("fc", "fc stays whole: reaches the model's output"),
        ("f*", "fc stays whole"),
    ],
)
def test_names_that_lead_nowhere_are_errors(name: str, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        by_ratios({name: 0.5})
    with pytest.raises(SelectionError, match=message):
        by_indices({name: [0]})


def test_layers_to_leave_alone_stay_whole() -> None:
    assert by_ratios({"layer1.*": 0.5}, exclude={"layer1.add"}) == {"layer1.inner": 2}
    with pytest.raises(SelectionError, match="left alone"):
        by_ratios({"layer1.*": 0.5}, heads=0.5, exclude={"attn.heads"})
    assert set(counts(allocate(GROUPS, scores(), ratio=0.5, exclude={"layer1.add", "attn.v"}))) == {"layer1.inner", "attn.qk"}
    with pytest.raises(SelectionError, match="leave alone"):
        by_ratios({"layer1.add": 0.5}, exclude={"layer1.add"})


def test_heads_stay_where_channels_inside_them_are_left_alone() -> None:
    assert set(by_ratios({"attn.*": 0.5}, heads={"*.heads": 0.5})) == {"attn.heads", "attn.qk", "attn.v"}
    assert set(counts(allocate(GROUPS, scores(), ratio=0.5, indices={}, exclude={"attn.v"}))) == {"layer1.add", "layer1.inner", "attn.qk"}
    with pytest.raises(SelectionError, match="leave alone"):
        allocate(GROUPS, scores(), heads={"*.heads": 0.5}, exclude={"attn.v"})


def test_a_ratio_of_heads_needs_heads() -> None:
    with pytest.raises(SelectionError, match="no heads"):
        allocate([STREAM, INNER], scores(), heads=0.5)


def test_indices_of_a_group_are_its_channels() -> None:
    assert by_indices({"layer1.add": [2, 0, 2]}) == {"layer1.add": (0, 2)}
    assert by_indices({"layer1.add": []}) == {}


def test_indices_of_a_layer_are_its_outputs() -> None:
    assert by_indices({"layer1.0.conv": [0]}) == {"layer1.add": (0,)}
    assert by_indices({"layer1.1.conv": [0]}) == {"layer1.add": (3,)}
    assert by_indices({"attn.qkv": [1, 6, 8, 11]}) == {"attn.qk": (1, 2), "attn.v": (0, 3)}


def test_outputs_that_cannot_go_are_named() -> None:
    with pytest.raises(SelectionError, match=r"Output 8 of 'attn\.qkv' belongs to no group"):
        by_indices({"attn.qkv": [1, 3, 8, 10]}, exclude={"attn.v"})


def test_indices_need_no_scores_and_come_before_ratios() -> None:
    found = allocate(GROUPS, scores(), ratio=0.5, ratios={"layer1.*": 0.25}, indices={"layer1.inner": [3]})
    assert found.remove["layer1.inner"] == (3,)
    assert found.remove["layer1.add"] == (0,)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"layer1.inner": [4]}, "channels 0 to 3; 4 cannot"),
        ({"layer1.inner": [-1]}, "-1 cannot"),
        ({"attn.qkv": [12]}, "channels 0 to 11"),
        ({"layer1.inner": [0, 1, 2, 3]}, "all channels of 'layer1.inner'"),
        ({"attn.qk": [0, 1, 2, 3]}, "all channels"),
        ({"attn.qk": [0]}, r"2 heads or groups.*equally many channels.*take 1, 0"),
        ({"attn.qk": [0, 1, 2]}, "take 2, 1"),
        ({"attn.heads": [0, 1]}, "all channels of 'attn.heads'"),
        ({"layer1.inner": [0.5]}, "whole numbers"),
        ({"layer1.inner": [True]}, "whole numbers"),
    ],
)
def test_indices_that_cannot_go_are_errors(indices: dict[str, list[int]], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        by_indices(indices)


def test_whole_heads_go_first_and_take_their_channels_along() -> None:
    found = allocate(GROUPS, scores(), ratio=0.5, heads=0.5)
    assert found.remove["attn.heads"] == (0,)
    assert found.remove["attn.qk"] == (2,)
    assert found.remove["attn.v"] == (2,)


def test_indices_inside_a_removed_head_are_dropped_with_a_note() -> None:
    found = allocate(GROUPS, {}, indices={"attn.heads": [1], "attn.qk": [0, 2]})
    assert found.remove == {"attn.heads": (1,), "attn.qk": (0,)}
    assert found.notes == ("attn.qk: 1 of the given channels go with their heads or groups already",)


def test_heads_are_not_rounded_to_channel_steps() -> None:
    found = allocate(GROUPS, scores(), heads={"attn.heads": 0.5}, options=Options(step_size=8, minimum=8))
    assert counts(found) == {"attn.heads": 1}


def test_the_outer_axis_removes_whole_heads() -> None:
    for axis in (0, -2):
        options = Options(reshape_channel_axis=axis)
        assert counts(allocate(GROUPS, scores(), ratio=0.5, options=options)) == {"layer1.add": 2, "layer1.inner": 2, "attn.heads": 1}
        assert by_ratios({"attn.qk": 0.5}, options=options) == {"attn.heads": 1}


def test_heads_that_fell_with_others_are_counted() -> None:
    members = [member("w", range(8), [0, 0, 1, 1, 2, 2, 3, 3])]
    twins = [group(name, 4, kind="blocks", members=members) for name in ("heads", "heads.2")]
    values = {"heads": torch.arange(4.0), "heads.2": torch.arange(4.0)}
    assert dict(allocate(twins, values, heads=0.5).remove) == {"heads": (0, 1)}
    assert dict(allocate(twins, values, heads={"heads": 0.25, "heads.2": 0.5}).remove) == {"heads": (0,), "heads.2": (1,)}


def test_an_allocation_becomes_edits_in_the_order_of_groups() -> None:
    found = allocate(GROUPS, {}, indices={"attn.heads": [1], "layer1.add": [0, 2]})
    assert found.edits(GROUPS) == (Prune("layer1.add", (0, 2), 4), Prune("attn.heads", (1,), 2, "blocks"))
