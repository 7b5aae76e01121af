from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from score.by_hand import solved
from secateur.allocate import Leave, excluded
from secateur.errors import SelectionError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1))
        self.tail = nn.Conv2d(8, 5, 1)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.fc(self.tail(y + self.body(y)).mean((2, 3)))


MODEL = Net()
GROUPS = solved(MODEL, torch.randn(2, 3, 4, 4))[1]
STREAM = next(g.name for g in GROUPS if g.size == 8)
INNER, TAIL = "body.0", "tail"


def test_the_groups_are_as_expected() -> None:
    assert {g.name: g.prunable for g in GROUPS} == {STREAM: True, INNER: True, TAIL: True, "fc": False}


@pytest.mark.parametrize(
    ("leave", "expected"),
    [
        ([], set()),
        (["fc"], {TAIL, "fc"}),
        (["tail"], {TAIL, STREAM}),
        (["body"], {STREAM, INNER}),
        (["body.?"], {STREAM, INNER}),
        (["body.1"], {INNER}),
        (["body.0.bias"], {INNER}),
        (["*.running_mean"], {INNER}),
        ([f"{STREAM[:-1]}?"], {STREAM}),
        ([nn.BatchNorm2d], {INNER}),
        ([nn.Linear], {TAIL, "fc"}),
        ([nn.LSTM], set()),
        ([lambda name, module: isinstance(module, nn.Conv2d) and module.out_channels == 5], {TAIL, STREAM}),
        ([lambda name, module: name == "stem"], {STREAM}),
        ([Net], {STREAM, INNER, TAIL, "fc"}),
        (["fc", nn.BatchNorm2d], {TAIL, "fc", INNER}),
    ],
)
def test_a_layer_to_leave_alone_holds_both_of_its_sides(leave: list[Leave], expected: set[str]) -> None:
    assert excluded(GROUPS, MODEL, leave) == expected


def test_an_unknown_layer_to_leave_alone_is_an_error() -> None:
    with pytest.raises(SelectionError, match=r"'body\.9'.*Did you mean 'body\.2'"):
        excluded(GROUPS, MODEL, ["body.9"])


def test_tied_weights_are_known_by_all_their_names() -> None:
    tied = {"tail.weight": ("tail.weight", "decoder.weight")}
    assert excluded(GROUPS, MODEL, [lambda name, module: False]) == set()
    model = nn.Module()
    model.decoder = nn.Linear(1, 1)
    assert excluded(GROUPS, model, ["decoder"], tied=tied) == {STREAM, TAIL}
