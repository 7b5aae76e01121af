"""Widths that a config can say: which groups keep alike, and what stays whole for its sake."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from networks.configured import Configured, Repeated, Settings
from secateur.allocate import Ties, alike, allocate
from secateur.pretrained.config import shapes_of
from secateur.pretrained.drivers import drivers

UNIFORM = sc.Options(uniform=True)


def test_like_layers_of_a_stack_lose_alike() -> None:
    study = sc.study(Repeated(), torch.randn(2, 4))
    assert [len(names) for names in alike(study.groups).together] == [3, 1]
    target = sc.Target(macs=0.7)
    removed = {e.name: len(e.remove) for e in study.plan(target=target, allocator=sc.GlobalRank(), options=UNIFORM).prunes}
    assert removed["up.0"] == removed["up.1"] == removed["up.2"] > 0


def test_each_tied_layer_loses_channels_of_its_own() -> None:
    study = sc.study(Repeated(), torch.randn(2, 4))
    scores = {g.name: torch.arange(g.size) * (-1.0 if g.name == "up.1" else 1.0) for g in study.groups}
    found = allocate(study.groups, scores, ratio=0.25, ties=alike(study.groups))
    assert (found.remove["up.0"], found.remove["up.1"]) == ((0, 1), (6, 7))


def test_unlike_sizes_keep_the_same_share_by_common_steps() -> None:
    study = sc.study(Repeated(), torch.randn(2, 4))
    scores = {g.name: torch.arange(float(g.size)) for g in study.groups}
    ties = Ties((("up.0", "up.3"),))
    removed = {name: len(some) for name, some in allocate(study.groups, scores, ratio=0.5, ties=ties).remove.items()}
    assert (removed["up.0"], removed["up.3"], removed["up.1"]) == (4, 5, 4)
    assert "up.0" not in allocate(study.groups, scores, ratio=0.4, ties=ties).remove
    coarse = Ties((("up.1",),), steps={("up.1",): 4})
    assert len(allocate(study.groups, scores, ratio=0.45, ties=coarse).remove["up.1"]) == 2


def test_what_stays_whole_says_why() -> None:
    study = sc.study(Repeated(), torch.randn(2, 4))
    scores = {g.name: torch.arange(float(g.size)) for g in study.groups}
    found = allocate(study.groups, scores, ratio=0.5, ties=Ties((), {"up.0": "of some reason"}))
    assert "up.0" not in found.remove
    assert found.notes == ("up.0: kept whole, since of some reason",)


def test_channels_by_number_and_shared_orders_are_refused() -> None:
    study = sc.study(Repeated(), torch.randn(2, 4))
    with pytest.raises(sc.SelectionError, match="give a ratio"):
        study.plan(indices={"up.0": [1]}, options=UNIFORM)
    with pytest.raises(sc.SelectionError, match="same channels"):
        study.plan(ratio=0.5, options=sc.Options(uniform=True, group_policy="sum"))
    assert study.plan(indices={"up.3": [1]}, options=UNIFORM).prunes[0].remove == (1,)


def test_drivers_are_found_by_building_the_class() -> None:
    model = Configured(Settings())
    found = drivers(model, model.config, {12, 24})
    assert {str(d): d.value for d in found.found} == {"width": 12, "classes": 3, "inner": 24}
    assert found.settled == {("inner",): 24}
    inner = next(d for d in found.found if str(d) == "inner")
    assert inner.places == {(f"{part}.{n}.{what}", dim) for n in (0, 1) for part, what, dim in (*UP, *DOWN)}
    assert found.steps(inner) == 24


UP, DOWN = (("up", "weight", 0), ("up", "bias", 0)), (("down", "weight", 1),)


def test_numbers_go_down_in_the_multiples_that_the_class_takes() -> None:
    model = Configured(Settings(even=True))
    found = drivers(model, model.config, set())
    width = next(d for d in found.found if str(d) == "width")
    assert found.steps(width) == 3
    plan = sc.study(model, torch.randn(2, 5)).plan(ratio=0.5, options=UNIFORM)
    assert {e.name: e.size - len(e.remove) for e in plan.prunes} == {"add_tensor": 8, "up.0": 12, "up.1": 12}


def test_a_model_that_is_not_what_its_config_says_stays_whole() -> None:
    model = Configured(Settings())
    model.config = Settings(width=16)
    with pytest.raises(sc.SelectionError, match="another model than this: down"):
        sc.study(model, torch.randn(2, 5)).plan(ratio=0.5, options=UNIFORM)


def test_a_width_that_something_whole_shares_stays() -> None:
    class Shown(Configured):
        def __init__(self, config: Settings) -> None:
            super().__init__(config)
            self.other = torch.nn.Linear(5, config.width)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            return super().forward(x), self.other(x)

    study = sc.study(Shown(Settings(inner=20)), torch.randn(2, 5))
    plan = study.plan(ratio=0.5, options=UNIFORM)
    assert {e.name for e in plan.prunes} == {"up.0", "up.1"}
    assert any("width in the config also sets dimension 0 of other.bias" in note for note in plan.settings["notes"])
    assert shapes_of(study.model)["up.0.weight"] == (20, 12)
