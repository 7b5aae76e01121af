"""The same work in this process and as tasks of Ray."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

import secateur as sc
from secateur.sweep.workers import each
from sweep.fake_ray import FakeRay
from sweep.models import network, samples, weight


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


@pytest.mark.parametrize("evaluate", [None, weight], ids=["fidelity", "metric"])
def test_points_are_the_same_on_ray(ray: FakeRay, evaluate: Any) -> None:
    here, there = (sc.sweep(network(), samples(8), [0.75, 0.5], data=samples(), evaluate=evaluate, workers=w) for w in (None, "ray"))
    assert ray.log == ["init", "task", "task", "shutdown"]
    assert ray.options == {"num_cpus": 1, "num_gpus": 0}
    for one, other in zip(here.points, there.points, strict=True):
        assert (one.target, one.macs, one.metric, one.proof_error) == (other.target, other.macs, other.metric, other.proof_error)
        assert one.plan == other.plan


def test_cuts_of_groups_are_the_same_on_ray(ray: FakeRay) -> None:
    here, there = (sc.sensitivity(network(), samples(8), [0.5], evaluate=weight, workers=w) for w in (None, "ray"))
    assert here.by_group == there.by_group
    assert ray.log.count("task") == 2


def test_a_ray_that_runs_already_is_left_running(ray: FakeRay) -> None:
    ray.running = True
    assert each(str, [3, 1, 2], "Counting", workers="ray", gpus=2) == ["3", "1", "2"]
    assert ray.log == ["task"] * 3
    assert ray.options["num_gpus"] == 2
    assert ray.running


def test_what_fails_on_ray_ends_it(ray: FakeRay) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        each(int, ["1", "one"], "Counting", workers="ray")
    assert ray.log[-1] == "shutdown"


def test_what_cannot_be_sent_is_named(ray: FakeRay) -> None:
    model = network()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(sc.UsageError, match=r"cannot be sent to Ray's workers: .*lock"):
        sc.sweep(model, samples(8), [0.5], evaluate=weight, workers="ray")


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for call in (sc.sweep, sc.sensitivity):
        with pytest.raises(sc.MissingExtraError, match=r"secateur\[ray\]"):
            call(None, workers="ray")  # type: ignore[arg-type]


def test_other_workers_are_refused() -> None:
    with pytest.raises(sc.UsageError, match="no workers 'dask'"):
        sc.sweep(network(), samples(8), workers="dask")  # type: ignore[arg-type]


def test_models_that_share_a_machine_are_not_timed(ray: FakeRay) -> None:
    with pytest.raises(sc.SelectionError, match="cannot be timed"):
        sc.sweep(network(), samples(8), [0.5], latency=True, workers="ray")
