"""Factors that are timed beside their layer."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn

from secateur.decompose import Call
from secateur.errors import SelectionError
from secateur.measure import Latency
from secateur.plan import Factorize
from secateur.study import study
from secateur.study.timed import slower
from secateur.target import Target

EDIT = Factorize("deep.inside", "svd", (3,))


def latency(median_ms: float) -> Latency:
    return Latency(median_ms, 0, 0, 0, 1, 1, "", "", 1, 1, "")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that models were timed on; factors take 4 ms on eight samples and 1 ms otherwise, the layer always 2 ms."""
    shapes: list[tuple[int, ...]] = []

    def compare(models: dict[str, nn.Module], args: tuple[torch.Tensor], **_: float) -> dict[str, Latency]:
        assert {name: [tuple(p.shape) for p in model.parameters()] for name, model in models.items()} == {
            "dense": [(9, 8), (9,)],
            "factors": [(3, 8), (9, 3), (9,)],
        }
        shapes.append(tuple(args[0].shape))
        return {"dense": latency(2), "factors": latency(4 if len(args[0]) == 8 else 1)}

    monkeypatch.setattr(import_module("secateur.study.timed"), "compare_latency", compare)
    return shapes


def test_factors_that_are_faster_over_all_calls_are_admitted(seen: list[tuple[int, ...]]) -> None:
    assert slower(nn.Linear(8, 9), EDIT, [Call(8, ()), Call(2, ()), Call(2, ()), Call(2, ())]) is None
    assert seen == [(8, 8), (2, 8)]


def test_factors_that_are_slower_over_all_calls_are_refused_with_both_times(seen: list[tuple[int, ...]]) -> None:
    found = slower(nn.Linear(8, 9), EDIT, [Call(8, ()), Call(2, ())])
    assert found is not None
    assert found.reason == "rank 3 makes it slower: 4 -> 5 ms measured"


def test_a_target_that_slow_factors_put_out_of_reach_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        import_module("secateur.study.timed"), "compare_latency", lambda *_, **__: {"dense": latency(2), "factors": latency(3)}
    )
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    with pytest.raises(SelectionError, match=r"cannot be reached: .* Of 2 layers no factors were faster"):
        study(model, torch.randn(2, 16)).plan_decomposition(target=Target(macs=0.5), timed=True)
