"""The JSON says what the result says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from report.seen import HOSTILE, Seen
from secateur.plan import Plan
from secateur.report import json_report


@pytest.fixture(scope="module")
def told(result: Seen) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json_report(result, command="secateur prune"))
    return read


def test_measurements_proof_and_latency_are_whole(result: Seen, told: dict[str, Any]) -> None:
    assert told["before"] == result.before.to_json()
    assert told["after"] == result.after.to_json()
    assert told["remains"]["MACs"] == result.after.macs / result.before.macs
    assert told["latency"]["dense"] == result.latency["dense"].to_json()
    assert result.fidelity is not None
    assert told["fidelity"] == result.fidelity.to_json()
    assert told["metrics"] == result.metrics
    assert told["proof"]["error"] == result.proof.error
    assert told["proof"]["holds"] is True
    assert [trial["error"] for trial in told["proof"]["trials"]] == [trial.error for trial in result.proof.trials]


def test_the_plan_can_be_read_back_from_the_report(result: Seen, told: dict[str, Any]) -> None:
    assert Plan.from_json(json.dumps(told["plan"])) == result.plan


def test_layers_say_what_was_kept_and_what_happened(result: Seen, told: dict[str, Any]) -> None:
    cut = next(row for row in told["layers"] if row["name"] == HOSTILE)
    assert (cut["channels"], cut["kept"], cut["removed"], cut["state"]) == (16, 10, 6, "cut")
    assert [row["state"] for row in told["layers"]] == ["cut", "whole", "spared", "whole"]
    assert [row["reason"] for row in told["layers"]] == [layer.reason for layer in result.layers]
    assert told["without_rule"] == {"mixed_default": "secateur_tests.mixed.default"}


def test_where_it_comes_from(told: dict[str, Any]) -> None:
    assert told["format"] == "secateur-report/1"
    assert told["inputs"] == {"[0]": "float32 2 × 3 × 8 × 8"}
    assert told["provenance"]["command"] == "secateur prune"
    assert told["provenance"]["torch"] == torch.__version__


def test_notes_of_result_and_proof_come_once(result: Seen) -> None:
    twice = replace(result, notes=("one", "two"), proof=replace(result.proof, notes=("two", "three")))
    assert json.loads(json_report(twice))["notes"] == ["one", "two", "three"]


@pytest.mark.parametrize(("error", "text"), [(math.nan, "nan"), (math.inf, "inf")])
def test_what_is_not_finite_becomes_text(result: Seen, error: float, text: str) -> None:
    damaged = replace(result, proof=replace(result.proof, error=error), metrics={"loss": error})
    told = json.loads(json_report(damaged), parse_constant=pytest.fail)
    assert told["proof"]["error"] == text
    assert told["proof"]["holds"] is False
    assert told["metrics"]["loss"] == text


def test_a_target_of_latency_tells_what_was_predicted_and_measured(result: Seen) -> None:
    latency = {"predicted_ms": {"dense": 8.0, "compressed": 5.0}, "measured_ms": {"dense": 9.0, "compressed": 6.0}}
    planned = replace(result.plan, settings={**result.plan.settings, "latency": latency})
    told = json.loads(json_report(replace(result, plan=planned)))
    assert told["remains"]["Latency, predicted"] == 0.625
    assert told["plan"]["settings"]["latency"] == latency
