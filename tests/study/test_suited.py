"""What is chosen where nobody chooses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.allocate import GlobalRank, Isomorphic, Knapsack, Options, Slamp, Uniform
from secateur.pipeline import compress
from secateur.score import L2, OBS, Signal, Taylor
from secateur.study import study
from secateur.study import suited as module
from secateur.study.suited import suited
from secateur.target import Target

HALF = Target(macs=0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Winner(Net):
    """Its only output is a number that nothing can be differentiated through."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


DATA = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def test_with_data_the_error_behind_a_refit_by_what_it_saves() -> None:
    found = study(Net().eval(), DATA[:2])
    way = suited(found, target=HALF, data=DATA)
    assert (way.criterion, way.allocator, way.options) == (OBS(), Knapsack("macs"), Options(layer_norm="none", step_size=None))
    assert suited(found, target=Target(parameters=0.5), data=DATA).allocator == Knapsack("parameters")
    assert suited(found, target=Target(latency=0.5), data=DATA).allocator == Knapsack("latency")


def test_without_data_the_signal_that_weights_and_norms_expect_in_one_ranking() -> None:
    way = suited(study(Net().eval(), DATA[:2]), target=HALF)
    assert (way.criterion, way.allocator) == (Signal(), GlobalRank())


def test_a_ratio_is_one_for_every_layer() -> None:
    result = compress(Net().eval(), DATA[:2], ratio=0.25, data=DATA, latency=False)
    assert result.plan.ratios == {"a": 0.25, "b": 0.25}
    assert result.plan.settings["criterion"] == repr(OBS())


def test_what_was_named_stays() -> None:
    found = study(Net().eval(), DATA[:2])
    assert suited(found, criterion=L2(), target=HALF, data=DATA).allocator is None
    assert suited(found, criterion=L2(), target=HALF, data=DATA).options == Options(step_size=None)
    assert suited(found, criterion=L2(), target=HALF, data=DATA, options=Options()).options == Options()
    assert suited(found, criterion=L2(), data=DATA).options == Options()
    way = suited(found, allocator=Slamp(), target=HALF, data=DATA)
    assert (way.criterion, way.allocator) == (OBS(), Slamp())
    assert suited(found, allocator=Uniform(), target=HALF).criterion == Signal()


def test_covariances_that_take_too_much_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = study(Net().eval(), DATA[:2])
    assert OBS.memory_gib(found.groups, found.solution) == 2 * 16**2 * 8 / 2**30
    monkeypatch.setattr(module, "ROOM_GIB", 1e-6)
    assert suited(found, target=HALF, data=DATA).criterion == Taylor()


def test_outputs_without_derivatives_leave_weights_and_norms() -> None:
    way = suited(study(Winner().eval(), DATA[:2]), target=HALF, data=DATA)
    assert way.criterion == Signal()
    assert "no channel that the outputs depend on" in way.notes[0]


def test_the_plan_says_what_was_chosen() -> None:
    result = compress(Winner().eval(), DATA[:2], target=HALF, data=DATA, latency=False)
    assert result.plan.settings["criterion"] == repr(Signal())
    assert any("no channel that the outputs depend on" in note for note in result.notes)


@pytest.mark.parametrize("allocator", [Slamp(), Isomorphic(Slamp())], ids=str)
def test_scores_are_scaled_as_the_allocator_wants_them(allocator: Slamp | Isomorphic) -> None:
    found = study(Net().eval(), DATA[:2])
    way = suited(found, criterion=L2(), allocator=allocator, target=HALF)
    assert way.options.layer_norm == "tss_norm"
    plan = way.plan(found, target=HALF)
    assert plan.edits == found.plan(L2(), allocator=allocator, target=HALF).edits
    assert sum("slamp squares scores" in note for note in plan.settings["notes"]) == 1
