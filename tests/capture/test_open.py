"""Graphs recorded at two sizes at once: what follows the sizes stays open, and what the model decides on them is checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capture.models import ConvNet
from secateur.capture.live import DivergedError
from secateur.capture.open import CLOSED, PARTLY, record_open
from secateur.capture.twice import REFUSAL, record_twice
from secateur.errors import CaptureError


class Sized(nn.Module):
    """A layer, and then what a function makes of its output."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Rows of four numbers."""
        return self.function(self.layer(x))


def rows(count: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, count, 4)


def windows(x: Tensor, size: int = 5) -> Tensor:
    """The largest value of each window, the last one padded."""
    batch, count, width = x.shape
    x = F.pad(x, (0, 0, 0, (size - count % size) % size))
    return x.view(batch, x.shape[1] // size, size, width).amax(2)


def below_and_above(x: Tensor) -> Tensor:
    return x.relu() if x.shape[1] > 10 else x.sigmoid()


ARITHMETIC: dict[str, Callable[[Tensor], Any]] = {
    "padded_windows": windows,
    "floor": lambda x: x[:, : x.shape[1] // 3],
    "ceil": lambda x: x[:, : math.ceil(x.shape[1] / 3)],
    "floor_of_a_quotient": lambda x: x[:, : math.floor(x.shape[1] / 2.5)],
    "remainder": lambda x: x[:, x.shape[1] % 4 :],
    "product": lambda x: x.reshape(x.shape[0] * x.shape[1], 4),
    "from_the_right": lambda x: x[:, : 20 - x.shape[1]],
    "largest": lambda x: x[:, : torch.sym_max(x.shape[1] - 5, 2)],
    "smallest": lambda x: x[:, : torch.sym_min(x.shape[1] - 5, 4)],
    "power": lambda x: x.new_ones(x.shape[1] ** 2),
    "positions": lambda x: x + torch.arange(x.shape[1], device=x.device)[:, None],
    "mask": lambda x: x.masked_fill(torch.ones(x.shape[1], x.shape[1]).tril()[-1][:, None] == 0, 0.0),
    "mean_by_size": lambda x: x.sum(1) / x.shape[1],
    "count": lambda x: x.sum() / x.numel(),
    "stride": lambda x: x.as_strided((x.shape[0], x.shape[1] * 4), (x.stride(0), 1)),
    "written": lambda x: x.new_zeros(x.shape[0], x.shape[1] + 2, 4).index_copy_(1, torch.arange(x.shape[1]), x),
    "sizes_returned": lambda x: (x, x.shape[1], x.shape[1] + 1),
    "resized": lambda x: F.interpolate(x.mT, scale_factor=2.0, mode="linear"),
    "pooled": lambda x: F.adaptive_avg_pool2d(x, (x.shape[1] // 2, 2)),
    "contiguous_at_one_of_the_sizes": lambda x: x.transpose(0, 1).contiguous().view(-1, 4),
    "written_in_place": lambda x: x.clone().mul_(2).add_(x[:, :1]),
    "contiguous": lambda x: x.mT.contiguous().view(x.shape[0], -1),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_what_is_computed_from_sizes_is_computed_in_the_graph(name: str) -> None:
    model = Sized(ARITHMETIC[name])
    found = record_open(model, (rows(12),))
    assert found.dynamic
    assert any("input_0[0, 1]" in note for note in found.notes)
    for count, batch in ((12, 1), (15, 2), (14, 3), (11, 1)):
        x = rows(count, batch)
        expected = model(x)
        for ours, theirs in zip(found.program(x), expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_images_of_any_size() -> None:
    model = ConvNet().eval()
    found = record_open(model, (torch.randn(1, 3, 8, 8),))
    for shape in ((1, 3, 8, 8), (2, 3, 12, 7)):
        x = torch.randn(shape)
        assert torch.equal(found.program(x)[0], model(x))


@pytest.mark.parametrize(("given", "taken", "refused"), [(12, 17, 9), (9, 10, 11)])
def test_a_decision_on_sizes_is_checked(given: int, taken: int, refused: int) -> None:
    model = Sized(below_and_above)
    found = record_open(model, (rows(given),))
    assert PARTLY in found.notes
    assert torch.equal(found.program(x := rows(taken))[0], model(x))
    with pytest.raises(AssertionError, match="does not hold for inputs of these sizes"):
        found.program(rows(refused))


def test_runs_that_part_are_no_capture() -> None:
    for function in (below_and_above, lambda x: sum(x[:, i] for i in range(x.shape[1]))):
        with pytest.raises(DivergedError, match="differs between sizes"):
            record_twice(Sized(function), (rows(12),), {}, [rows(8)])


def test_numbers_that_values_tell_are_no_sizes() -> None:
    counting = Sized(lambda x: x[:, : int((x[0, :, 0] > -torch.inf).sum().item()) // 2])
    with pytest.raises(DivergedError, match="gives 12 at one size of the inputs and 8 at another"):
        record_twice(counting, (rows(12),), {}, [rows(8)])


def test_a_size_that_is_the_same_by_chance_stays_open() -> None:
    model = Sized(lambda x: windows(x, 16))
    found = record_open(model, (rows(16),))
    for count in (8, 16, 24, 40):
        x = rows(count)
        assert torch.equal(found.program(x)[0], model(x))


def test_other_sizes_are_refused_where_only_the_batch_is_open() -> None:
    table = torch.randn(6, 4)
    model = Sized(lambda x: (x + table).reshape(-1, 24))
    found = record_open(model, (rows(6),))
    assert torch.equal(found.program(x := rows(6, 3))[0], model(x))
    assert CLOSED not in found.notes
    with pytest.raises(AssertionError, match="does not hold for inputs of these sizes"):
        found.program(rows(12))


def test_what_runs_elsewhere_with_other_calls_is_said() -> None:
    model = Sized(lambda x: sum(x[:, i] for i in range(x.shape[1])))
    assert CLOSED in record_open(model, (rows(6),)).notes


def test_a_model_of_one_size_is_no_open_capture() -> None:
    with pytest.raises(CaptureError, match="no input size can be left open"):
        record_open(Sized(lambda x: x + torch.ones(3, 6, 4)), (rows(6, 3),))


def test_a_decision_on_values_is_none_on_sizes() -> None:
    with pytest.raises(CaptureError, match="no input size can be left open"):
        record_open(Sized(lambda x: x if x.sum() > 0 else -x), (rows(6),))


class Counting(nn.Module):
    """A model that writes to a buffer of its own, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Count, remember, and go on."""
        self.calls.add_(1)
        self.seen = self.layer(x)
        return self.seen


def test_the_model_stays_as_it_was() -> None:
    model = Counting()
    with pytest.raises(CaptureError, match="writes to a tensor of its own"):
        record_twice(model, (rows(6),), {}, [rows(8)])
    assert int(model.calls) == 0
    keeping = Sized(lambda x: x)
    keeping.function = lambda x: setattr(keeping, "seen", x) or x
    record_open(keeping, (rows(6),))
    assert not hasattr(keeping, "seen")


def test_what_refuses_is_one_message() -> None:
    found = record_open(Sized(windows), (rows(12),))
    messages = {node.args[1] for node in found.graph.nodes if node.target is torch._assert}
    assert messages == {REFUSAL}


def test_sizes_that_are_held_are_no_decisions() -> None:
    assert PARTLY not in record_open(Sized(windows), (rows(12),)).notes
