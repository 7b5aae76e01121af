"""Predicted losses beside what is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.study import Study, calibration, study
from secateur.study.coherence import coherent_curves, coherent_removals
from secateur.study.curves import Curve, Seen, curve_of, observed
from secateur.study.removals import Removal, removal_of
from secateur.study.wish import Decompose


class Pooled(nn.Module):
    """Two convolutions, the mean over positions, and a matrix: linear in all it does, so what is told to second order is all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).mean((2, 3)))


def images(samples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(samples, 8, 2, 2, generator=generator)
    return nn.functional.interpolate(coarse, size=(8, 8)) + 0.3 * torch.randn(samples, 8, 8, 8, generator=generator)


DATA = images(256, 1)


@pytest.fixture(scope="module")
def pooled() -> Study:
    torch.manual_seed(0)
    return study(Pooled().eval(), DATA[:2])


@pytest.fixture(scope="module")
def seen(pooled: Study) -> Seen:
    held = calibration(pooled.capture, DATA, 256)
    return observed(pooled.model, list(pooled.decomposable), Decompose(fit="inputs"), held, everything=True)[1]


@torch.no_grad()
def lost(dense: nn.Module, small: nn.Module) -> float:
    return float((dense(DATA) - small(DATA)).square().mean() / dense(DATA).var(0, correction=0).mean())


def half(curve: Curve) -> int:
    costs, errors = curve.errors.costs[:-1], curve.errors.errors[:-1]
    return int(np.where(costs <= curve.errors.dense_cost / 2, errors, np.inf).argmin())


def test_curves_of_ranks_tell_what_is_lost(pooled: Study, seen: Seen) -> None:
    rows = {row.name: row for row in pooled.decomposable}
    found = {name: curve_of(pooled.model, row, Decompose(), "macs", seen) for name, row in rows.items()}
    curves = {name: curve for name, curve in found.items() if isinstance(curve, Curve)}
    scaled = coherent_curves(pooled.model, rows, curves, seen)
    assert list(scaled) == list(curves)
    misses = []
    for name, curve in curves.items():
        place = half(curve)
        point = curve.points[place]
        assert point is not None
        plan = pooled.plan_decomposition(point[0], rank={name: point[1]}, data=DATA, samples=256)
        true = lost(pooled.model, sc.apply(pooled, plan, data=DATA, samples=256).model)
        misses.append([abs(np.log(each.errors.errors[place] / true)) for each in (curve, scaled[name])])
        np.testing.assert_allclose(np.ptp(scaled[name].errors.errors[:-1] / curve.errors.errors[:-1]), 0, atol=1e-9)
        assert scaled[name].errors.whole / curve.errors.whole == pytest.approx(scaled[name].errors.errors[0] / curve.errors.errors[0])
    before, after = np.array(misses).max(0)
    assert after < 0.3 < np.log(2) < before


class Wide(nn.Module):
    """A matrix with more inputs than there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12 * 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x).relu().flatten(1))


def test_a_layer_with_more_inputs_than_samples_does_not_seem_to_lose_nothing() -> None:
    torch.manual_seed(0)
    found = study(Wide().eval(), DATA[:2])
    rows = {row.name: row for row in found.decomposable}
    wish, seen = observed(found.model, list(rows.values()), Decompose(), calibration(found.capture, DATA[:24], 24), everything=True)
    curves = {name: curve_of(found.model, row, wish, "macs", seen) for name, row in rows.items()}
    known = {name: curve for name, curve in curves.items() if isinstance(curve, Curve)}
    scaled = coherent_curves(found.model, rows, known, seen)
    # It is called once a sample, so there is nothing for a scale to tell.
    assert 0.5 < scaled["head"].errors.whole / known["head"].errors.whole < 2


def test_losses_of_channels_tell_what_is_lost(pooled: Study, seen: Seen) -> None:
    found = {group.name: removal_of(pooled.model, group, pooled.decomposable, seen) for group in pooled.groups if group.prunable}
    removals = {name: removal for name, removal in found.items() if isinstance(removal, Removal)}
    assert set(removals) == {"one", "two"}
    scaled = coherent_removals(pooled.model, removals, pooled.decomposable, seen)
    misses = {}
    for name, removal in removals.items():
        step = int(np.abs(removal.counts - 6).argmin())
        plan = pooled.plan(indices={name: removal.order[: removal.counts[step]].tolist()})
        result = sc.apply(pooled, plan)
        sc.Standard()(result.model, pooled.cut(plan), DATA)
        true = lost(pooled.model, result.model)
        misses[name] = [abs(np.log(each.losses[step] / true)) for each in (removal, scaled[name])]
        assert scaled[name].losses[step] / removal.losses[step] == pytest.approx(scaled[name].losses[1] / removal.losses[1])
    # The matrix behind the mean is told exactly; the refit of a convolution, which looks at patches of its own choice, to a factor of two.
    assert misses["two"][1] < 0.1 < misses["two"][0]
    assert misses["one"][1] < np.log(2)


def test_without_slopes_nothing_is_scaled(pooled: Study, seen: Seen) -> None:
    rows = {row.name: row for row in pooled.decomposable}
    curves = {"two": curve_of(pooled.model, rows["two"], Decompose(), "macs", seen)}
    assert isinstance(curves["two"], Curve)
    for blind in (replace(seen, slopes={}), replace(seen, batches=None)):
        (same,) = coherent_curves(pooled.model, rows, curves, blind).values()
        np.testing.assert_array_equal(same.errors.errors, curves["two"].errors.errors)
