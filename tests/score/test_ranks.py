"""Two processes with half of the data each find what one finds with all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from processes import run_together
from score.calibrates_together import CRITERIA, MODELS, behind_norms, found, share
from secateur.score import ranks

WORKER = Path(__file__).with_name("calibrates_together.py")
VALUES = [f"{model}/{key}" for model in MODELS for key in (*CRITERIA, "refit", "moved", "factors")] + ["normed/attention"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, Any]]:
    torch.set_num_threads(1)
    return [torch.load(file, weights_only=True) for file in run_together(WORKER, tmp_path_factory.mktemp("ranks"), 2)]


@pytest.fixture(scope="module")
def alone() -> Mapping[str, Any]:
    torch.set_num_threads(1)
    return {key: value for name in MODELS for key, value in found(name, 0, 1).items()} | behind_norms(0, 1)


@pytest.mark.parametrize("key", VALUES)
def test_scores_and_weights_are_those_of_one_process(both: list[Mapping[str, Any]], alone: Mapping[str, Any], key: str) -> None:
    torch.testing.assert_close(both[1][key], both[0][key], rtol=0, atol=0)
    torch.testing.assert_close(both[0][key], alone[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", [f"{model}/{criterion}/plan" for model in MODELS for criterion in CRITERIA])
def test_plans_are_the_same_in_every_process_and_in_one(both: list[Mapping[str, Any]], alone: Mapping[str, Any], key: str) -> None:
    assert both[0][key] == both[1][key] == alone[key]


@pytest.mark.parametrize("model", MODELS)
def test_plans_of_factors_tell_of_the_data_of_all(both: list[Mapping[str, Any]], alone: Mapping[str, Any], model: str) -> None:
    key = f"{model}/factors/plan"
    assert both[0][key] == both[1][key]
    told = [sc.Plan.from_json(each[key]) for each in (both[0], alone)]
    assert told[0].edits == told[1].edits


@pytest.mark.parametrize("model", MODELS)
def test_half_of_the_data_would_say_something_else(alone: Mapping[str, Any], model: str) -> None:
    study, half = share(model, 0, 2)
    mine = study.scores(sc.OBS(), data=half, samples=None)
    assert any(not torch.allclose(mine[name], scores, rtol=1e-3) for name, scores in alone[f"{model}/obs"].items())


def test_one_process_has_nothing_to_share() -> None:
    tensor = torch.ones(2)
    assert ranks.summed(tensor) is tensor
    assert (ranks.total(3), ranks.collected("x"), ranks.counted_before(4), ranks.processes()) == (3, ["x"], (0, 4), 1)


def test_data_without_samples_are_an_error_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "collected", lambda value: [5, 0])
    with pytest.raises(sc.SelectionError, match="process 1"):
        ranks.check_samples(5)
