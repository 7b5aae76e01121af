"""Times of single operators are measured once and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.measure import EagerTimer, LayerTimes, Machine, Operation, Repeats
from secateur.measure.layer_times import FORMAT, cache_folder
from secateur.study import study

HERE = Machine("made up", "none", 1)


@dataclass
class Counted:
    """A timer that tells how often it was asked, and gives what it is told to."""

    machine: Machine = HERE
    ms: float | None = 2.5
    asked: list[str] = field(default_factory=list)

    def __call__(self, operation: Operation) -> float | None:
        self.asked.append(operation.key)
        return self.ms


def operations(model: nn.Module, *shape: int) -> list[Operation]:
    graph = study(model.eval(), torch.randn(*shape)).capture.graph
    return [found for node in graph.nodes if (found := Operation.of(node)) is not None]


@pytest.fixture
def linear() -> Operation:
    return operations(nn.Linear(4, 8), 2, 4)[0]


def test_a_call_is_told_by_operator_types_shapes_and_settings() -> None:
    convolution, relu = operations(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Flatten(), nn.ReLU()), 2, 6, 5, 5)
    assert convolution.key.startswith("aten.conv2d.")
    assert "float32[2,6,5,5], float32[6,1,3,3], float32[6], [1, 1]" in convolution.key
    assert relu.key == "aten.relu.default(float32[2,150])"
    narrower = convolution.with_numbers(tuple(3 if number == 6 else number for number in convolution.numbers))
    assert "float32[2,3,5,5], float32[3,1,3,3], float32[3], [1, 1]" in narrower.key
    assert narrower.key.endswith(", 3)")
    assert (narrower.kind, narrower.key == convolution.key) == (convolution.kind, False)
    args, kwargs = narrower.arguments(torch.device("cpu"))
    assert narrower.target(*args, **kwargs).shape == (2, 3, 5, 5)


def test_what_was_measured_is_read_the_next_time(tmp_path: Path, linear: Operation) -> None:
    first, second = Counted(), Counted(ms=99.0)
    assert LayerTimes(first, tmp_path)([linear, linear]) == [2.5, 2.5]
    later = LayerTimes(second, tmp_path)
    assert later([linear]) == [2.5]
    assert (first.asked, second.asked, later.measured) == ([linear.key], [], 0)


def test_what_does_not_run_is_remembered_too(tmp_path: Path, linear: Operation) -> None:
    LayerTimes(Counted(ms=None), tmp_path)([linear])
    assert LayerTimes(Counted(ms=1.0), tmp_path)([linear]) == [None]


@pytest.mark.parametrize("other", [Machine("another", "none", 1), Machine("made up", "bigger", 1), Machine("made up", "none", 2)], ids=str)
def test_another_machine_has_another_file(tmp_path: Path, linear: Operation, other: Machine) -> None:
    LayerTimes(Counted(), tmp_path)([linear])
    assert LayerTimes(Counted(other, ms=7.0), tmp_path)([linear]) == [7.0]
    assert LayerTimes(Counted(), tmp_path)([linear]) == [2.5]


@pytest.mark.parametrize(
    "damaged",
    ["{", "[]", "null", json.dumps({"format": "other"}), json.dumps({"format": FORMAT, "machine": {}, "milliseconds": {}})],
)
def test_a_damaged_file_is_measured_anew_with_a_note(tmp_path: Path, linear: Operation, damaged: str) -> None:
    path = tmp_path / HERE.file
    path.write_text(damaged)
    times = LayerTimes(Counted(), tmp_path)
    assert times([linear]) == [2.5]
    (note,) = times.notes
    assert str(path) in note
    assert "timed anew" in note
    whole = LayerTimes(Counted(ms=9.0), tmp_path)
    assert (whole([linear]), whole.notes) == ([2.5], [])


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, linear: Operation) -> None:
    (tmp_path / "taken").write_text("")
    times = LayerTimes(Counted(), tmp_path / "taken")
    assert times([linear]) == [2.5]
    assert "layer times are not kept" in times.notes[0]


def test_times_that_others_wrote_meanwhile_stay(tmp_path: Path) -> None:
    one, other, first = (operations(nn.Linear(4, width), 2, 4)[0] for width in (8, 9, 10))
    early, late = LayerTimes(Counted(), tmp_path), LayerTimes(Counted(ms=3.0), tmp_path)
    early([first])
    late([other])
    early([one])
    assert LayerTimes(Counted(ms=9.0), tmp_path)([one, other, first]) == [2.5, 3.0, 2.5]
    assert [path.name for path in tmp_path.iterdir()] == [HERE.file]


def test_the_cache_is_where_the_user_has_caches(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "secateur" / "layer-times"
    assert cache_folder({}) == Path.home() / ".cache" / "secateur" / "layer-times"


def test_the_fastest_call_counts(linear: Operation) -> None:
    times = iter([0.0, 0.0, 0.004, 0.010, 0.012, 0.100, 1.0])  # the end of the budget, and two ticks a call
    assert EagerTimer(repeats=Repeats(lambda: next(times), repeats=3, budget_s=-1))(linear) == pytest.approx(4.0)
    times = iter([0.0, 0.0, 0.004, 0.1, 0.010, 0.012, 0.1, 0.1, 0.2])
    assert EagerTimer(repeats=Repeats(lambda: next(times), repeats=3, budget_s=1))(linear) == pytest.approx(2.0)


def test_calls_end_with_the_budget_but_not_before_a_third() -> None:
    ticks, calls = count(), []
    Repeats(lambda: float(next(ticks)), warmup=2, repeats=15, budget_s=8.0).fastest_ms(lambda: calls.append(1))
    assert len(calls) == 2 + 5
    Repeats(warmup=2, repeats=15, budget_s=1e9).fastest_ms(lambda: calls.append(1))
    assert len(calls) == 2 + 5 + 2 + 15


def test_an_operator_that_does_not_run_has_no_time(linear: Operation) -> None:
    wrong = linear.with_numbers((2, 4, 8, 5, 8))
    assert EagerTimer()(wrong) is None


def test_timing_leaves_random_numbers_and_threads_alone(linear: Operation) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = EagerTimer(threads=2)(linear)
    assert found is not None
    assert (torch.rand(1), torch.get_num_threads()) == (expected, 1)


def test_the_machine_is_named_with_its_threads() -> None:
    found = EagerTimer(threads=3).machine
    assert (found.runtime, found.threads) == (f"torch {torch.__version__}", 3)
    assert found.device.startswith("cpu ")
    assert EagerTimer(threads=2).machine.file != found.file
