"""For each layer fewer channels or factors, whichever loses less."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.decompose import SVD, Moments
from secateur.measure import weight_bytes
from secateur.plan import Plan
from secateur.study import Study, study
from secateur.study.curves import Seen
from secateur.study.removals import Removal, removal_curve, removal_of
from secateur.study.weighing import Choice, Proportional, Ranks, Weighing


class Mixed(nn.Module):
    """A layer whose channels say the same several times over, and one of low rank whose channels all differ."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.down, self.low, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        with torch.no_grad():
            self.wide.weight[12:] = self.wide.weight[:12].repeat(3, 1) * torch.linspace(0.5, 2, 36).unsqueeze(1)
            self.wide.bias.zero_()
            self.low.weight.copy_(torch.randn(24, 4) @ torch.randn(4, 24) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.low(torch.tanh(self.down(torch.relu(self.wide(x)))))))


DATA = torch.randn(512, 24, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def mixed() -> Study:
    torch.manual_seed(0)
    return study(Mixed().eval(), DATA[:2])


def lost(dense: nn.Module, small: nn.Module) -> float:
    with torch.no_grad():
        return float((dense(DATA) - small(DATA)).square().mean() / dense(DATA).var(0).mean())


def test_each_layer_goes_the_way_that_suits_it(mixed: Study) -> None:
    result = sc.compress(mixed.model, DATA[:2], target=sc.Target(macs=0.35), decompose=sc.Cheaper(), data=DATA, latency=False)
    assert 0.3 < result.after.macs / result.before.macs <= 0.35
    assert result.plan.ratios["wide"] > 0.4
    assert [(edit.layer, edit.rank) for edit in result.plan.factorizations] == [("low", (4,))]
    assert "factors for low" in result.plan.settings["notes"][0]
    assert result.proof.holds
    ways: list[dict[str, Any]] = [{"criterion": sc.OBS(), "allocator": sc.GlobalRank()}, {"decompose": sc.Decompose()}]
    for way in ways:
        other = sc.compress(mixed.model, DATA[:2], target=sc.Target(macs=0.35), data=DATA, latency=False, **way)
        assert lost(mixed.model, result.model) < lost(mixed.model, other.model)
    assert Plan.from_json(result.plan.to_json()) == result.plan


@pytest.mark.parametrize("target", [sc.Target(macs=0.9), sc.Target(parameters=0.6), sc.Target(bytes=0.6), sc.Target(macs=0.25)], ids=str)
def test_targets_are_met(mixed: Study, target: sc.Target) -> None:
    plan = sc.Cheaper().plan(mixed, target, DATA, samples=256)
    result = sc.apply(mixed, plan, data=DATA, samples=256)
    share = getattr(result.after, target.quantity) / getattr(result.before, target.quantity)
    assert target.fraction - 0.1 < share <= target.fraction


def test_layers_to_leave_alone_keep_channels_and_rank(mixed: Study) -> None:
    plan = sc.Cheaper().plan(mixed, sc.Target(macs=0.6), DATA, exclude=["wide"])
    assert "wide" not in {edit.name for edit in plan.edits}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": None}, "needs calibration data"),
        ({"data": DATA, "ratio": 0.3}, "leave out ratio"),
        ({"data": DATA, "criterion": sc.L2(), "heads": 0.5}, "leave out heads, criterion"),
        ({"data": DATA, "decompose": sc.Cheaper(sc.Decompose(rank=3))}, "finds channels and ranks for a target: give that alone"),
        ({"data": DATA, "target": sc.Target(macs=0.001)}, "so cheap"),
    ],
)
def test_what_cannot_be_is_refused(mixed: Study, given: dict[str, Any], said: str) -> None:
    with pytest.raises(sc.SelectionError, match=said):
        sc.compress(mixed.model, DATA[:2], latency=False, **({"decompose": sc.Cheaper(), "target": sc.Target(macs=0.5)} | given))


def test_losses_of_removed_channels_are_those_of_least_squares() -> None:
    torch.manual_seed(1)
    x, columns = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    covariance = x.T @ x / 200
    order, losses = removal_curve([(covariance, columns)])
    for count in range(6):
        kept = sorted(order[count:].tolist())
        fitted = x[:, kept] @ torch.linalg.lstsq(x[:, kept], x @ columns.T).solution if kept else torch.zeros(200, 3)
        assert losses[count] == pytest.approx(float((x @ columns.T - fitted).square().sum() / 200), rel=0.02, abs=1e-9)


class Flat(nn.Module):
    """A layer that reads each channel at four positions, and one whose channels go into a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.flat = nn.Conv2d(3, 6, 3), nn.Linear(24, 8)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.flat(torch.relu(self.stem(x)).flatten(1)))
        return self.query(x) @ self.key(x).mT


def test_a_channel_with_several_places_loses_what_all_of_them_lose() -> None:
    torch.manual_seed(0)
    found, x = study(Flat().eval(), torch.randn(2, 3, 4, 4)), torch.randn(1, 24, 24, dtype=torch.float64)
    moments = Moments(100, torch.zeros(1, 24, dtype=torch.float64), 100 * x @ x.mT)
    removal = removal_of(found.model, next(g for g in found.groups if g.name == "stem"), found.decomposable, Seen({"flat": moments}))
    assert isinstance(removal, Removal)
    place = {m.tensor: m for m in removal.group.members}
    assert removal.gone(place["flat.weight"]).tolist() == pytest.approx([n / 6 for n in range(6)])
    assert removal.scores.argsort().tolist() == removal.order.tolist()
    assert (np.diff(removal.losses) > 0).all()
    covariance, weight = (x @ x.mT)[0], found.model.flat.weight.detach().double()
    parts = [covariance[place::4, place::4] for place in range(4)]
    inverses = torch.stack([torch.linalg.inv(c + 1e-4 * c.diagonal().mean() * torch.eye(6)).diagonal() for c in parts])
    single = (weight.square().sum(0).reshape(6, 4).T / inverses).sum(0) / (weight @ covariance @ weight.T).trace()
    assert removal.order[0] == int(single.argmin())
    assert removal.losses[1] == pytest.approx(float(single.min()), rel=1e-9)
    refused = removal_of(found.model, next(g for g in found.groups if g.name == "flat"), found.decomposable, Seen({"flat": moments}))
    assert "no loss can be told" in refused.reason
    products = removal_of(found.model, next(g for g in found.groups if g.name == "qk"), found.decomposable, Seen())
    assert "no layer reads" in products.reason


def weighing(found: Study, seed: int) -> Weighing:
    """Groups and layers of a model with curves whose steepness is chance, few enough to try all of them."""
    generator = np.random.default_rng(seed)
    removals = {}
    for group in (g for g in found.groups if g.name in ("wide", "low")):
        parts = np.arange(12) / 12
        removals[group.name] = Removal(group, np.arange(group.size), generator.random() * parts**2, (group.size * parts).astype(np.int64))
    weights, ranks = {name: float(cost) for name, cost in found.macs.by_weight.items()}, {}
    for name in ("wide.weight", "down.weight"):
        parts = np.arange(1, 9) / 10
        sizes, points = np.array([*parts, 0.0]) * weights[name] / 2, [*((SVD(), (n,)) for n in range(1, 9)), None]
        losses = generator.random() * np.array([*(1 - parts), 0.0]) ** 2
        ranks[name] = Ranks(tuple(points), losses, sizes, np.zeros(9), sizes, np.array([*np.zeros(8), weights[name]]))
    return Weighing(removals, ranks, {name: Proportional(cost) for name, cost in weights.items()}, 100.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_choice_stays_within_the_budget_and_near_the_best(mixed: Study, seed: int, share: float) -> None:
    problem = weighing(mixed, seed)
    allowed = share * problem.dense.cost
    found = problem.within(allowed)
    tried = [
        problem.told(Choice({"wide": wide, "low": low}, {"wide.weight": first, "down.weight": second}))
        for wide, low, first, second in itertools.product(range(12), range(12), range(9), range(9))
    ]
    assert found in tried
    assert found.cost <= allowed
    assert found.loss <= 1.5 * min(choice.loss for choice in tried if choice.cost <= allowed)


def test_bytes_left_are_predicted_and_measured(mixed: Study) -> None:
    """What batch norms and others hold beside weights counts, as it does for a target of widths."""
    model = nn.Sequential(nn.Linear(24, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24), nn.Linear(24, 5)).eval()
    found = study(model, DATA[:2])
    result = sc.apply(found, sc.Cheaper().plan(found, sc.Target(bytes=0.5), DATA), data=DATA)
    assert 0.45 < result.after.bytes / result.before.bytes <= 0.5


def test_ranks_are_found_for_bytes_of_what_is_left(mixed: Study) -> None:
    whole = mixed.plan_decomposition(target=sc.Target(bytes=0.5), data=DATA)
    left = mixed.after(mixed.plan(ratio=0.2)).plan_decomposition(target=sc.Target(bytes=0.5), data=DATA)
    for plan in (whole, left):
        result = sc.apply(mixed, plan, data=DATA)
        assert 0.45 < result.after.bytes / result.before.bytes <= 0.5
        told = next(note for note in plan.settings["notes"] if note.startswith("target 50.0%"))
        assert abs(float(told.split("predicted ")[1].rstrip("%")) / 100 - result.after.bytes / result.before.bytes) < 0.002


class Halves(nn.Module):
    """A wide layer in half precision before one in single precision, each element of which takes twice as many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.norm, self.high = nn.Linear(32, 40).half(), nn.BatchNorm1d(40), nn.Linear(40, 24)
        self.head = nn.Linear(24, 5).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.high(self.norm(torch.relu(self.low(x).float())))).half())


@pytest.mark.parametrize("way", ["ranks", "cheaper"])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_bytes_of_weights_of_several_types_count_as_they_are_stored(way: str, share: float) -> None:
    torch.manual_seed(0)
    data = torch.randn(256, 32, generator=torch.Generator().manual_seed(1)).half()
    found = study(Halves().eval(), data[:2])
    target = sc.Target(bytes=share)
    plan = sc.Cheaper().plan(found, target, data) if way == "cheaper" else found.plan_decomposition(target=target, data=data)
    result = sc.apply(found, plan, data=data)
    assert share - 0.06 < weight_bytes(result.model) / weight_bytes(found.model) <= share
    assert {p.dtype for p in result.model.low.parameters()} == {torch.float16}
