"""Factorizing layers from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer

from cli.conftest import IMAGE, Secateur
from cli.models import convnet
from secateur.cli.ranks import rank_of
from secateur.decompose import ByEnergy, ByRatio, ByVBMF
from secateur.export import load
from secateur.plan import Plan
from target.timers import Stairs, on_own_clocks

QUIET = ("--no-latency", "--no-onnx", "--json")


def ranks(told: dict) -> dict[str, list[int]]:
    return {edit["layer"]: edit["rank"] for edit in told["plan"]["edits"]}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--rank", "2x3"), {"0": [2, 3], "3": [2, 3]}),
        (("--rank", "2"), {"0": [2, 2], "3": [2, 2], "6": [2]}),
        (("--rank", "0.5", "--method", "svd"), {"6": [1]}),
        (("--rank", "3=2x2", "--rank", "[6]*=3"), {"3": [2, 2], "6": [3]}),
        (("--rank", "3=18", "--accept-dearer", "--method", "spatial-svd"), {"3": [18]}),
        (("--target-macs", "0.6", "--exclude", "0", "--method", "tucker"), {"3": [8, 2]}),
    ],
)
def test_ranks_as_options_say_them(words: tuple[str, ...], found: dict[str, list[int]], secateur: Secateur) -> None:
    done = secateur("decompose", "cli.models:convnet", *IMAGE, *words, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert ranks(done.data) == found


def test_a_rank_is_read_in_every_spelling() -> None:
    spelled = {"64": 64, "32x64": (32, 64), "0.25": ByRatio(0.25), "energy:0.9": ByEnergy(0.9), "vbmf": ByVBMF(), "vbmf:-0.2": ByVBMF(-0.2)}
    assert {text: rank_of(text) for text in spelled} == spelled
    for text in ("many", "energy", "1.5", "x", "-3"):
        with pytest.raises(typer.BadParameter, match="cannot read"):
            rank_of(text)


def test_factors_are_saved_proven_and_loaded(secateur: Secateur, tmp_path: Path) -> None:
    data = ("--data", "cli.models:samples", "--fit", "sequential")
    done = secateur("decompose", "cli.models:convnet", *IMAGE, "--target-macs", 0.8, *data, "--out", tmp_path / "out", *QUIET)
    assert done.code == 0, done.err
    assert done.data["proof"]["reference"] == "the dense model with recomposed weights"
    assert done.data["factorized"][0]["output_error"] > 0
    assert isinstance(load(tmp_path / "out", convnet())[3], torch.nn.Sequential)
    assert secateur("prove", tmp_path / "out", "--json").data["recovered"] == []
    assert "Proven equal to the dense model with recomposed weights" in secateur("prove", tmp_path / "out").out
    assert "1 factorized" in secateur("report", tmp_path / "out").out
    assert Plan.load(tmp_path / "out").settings["seed"] == 0


def test_a_plan_with_factors_is_applied_again_with_the_same_data(secateur: Secateur, tmp_path: Path) -> None:
    plan, data = tmp_path / "plan.json", ("--data", "cli.models:samples")
    done = secateur("decompose", "cli.models:convnet", *IMAGE, "--rank", 2, *data, "--plan", plan, "--out", tmp_path / "out", *QUIET)
    assert done.code == 0, done.err
    again = secateur("apply", "cli.models:convnet", plan, *IMAGE, *data, "--out", tmp_path / "again", *QUIET)
    assert again.code == 0, again.err
    assert not any("other calibration data" in note for note in again.data["notes"])
    first, second = (load(tmp_path / name, convnet()).state_dict() for name in ("out", "again"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    without = secateur("apply", "cli.models:convnet", plan, *IMAGE, "--out", tmp_path / "third", *QUIET)
    assert without.code == 1
    assert "give calibration data" in without.err


def test_weights_that_changed_after_factorizing_are_no_longer_proven(secateur: Secateur, tmp_path: Path) -> None:
    done = secateur("decompose", "cli.models:convnet", *IMAGE, "--rank", "3=2x2", "--out", tmp_path / "out", *QUIET)
    assert done.code == 0, done.err
    other = secateur("prove", tmp_path / "out", "cli.models:convnet", "--seed", 1)
    assert other.code == 1
    assert "is not the dense model's" in other.err
    again = secateur("prove", tmp_path / "out", "cli.models:convnet", "--seed", 1, "--recovered", "--json")
    assert again.code == 0, again.err
    assert {"0.weight", "6.bias"} <= set(again.data["recovered"])
    assert not any(name.startswith("3.") for name in again.data["recovered"])


def test_layers_that_can_be_factorized_are_listed(secateur: Secateur) -> None:
    done = secateur("layers", "cli.models:convnet", *IMAGE, "--decomposable", "--json")
    assert {row["names"][0]: row["methods"] for row in done.data["layers"]}["6"] == ["svd"]
    assert "3 of 3 layers can be factorized" in secateur("layers", "cli.models:convnet", *IMAGE, "--decomposable").out


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("--rank", "2", "--rank", "3=2"), "NAME=RANK for each", 2),
        (("--rank", "7=2"), "No layer that could be factorized matches '7'", 1),
        (("--rank", "3=7x6"), "3: rank (7, 6) makes it dearer", 1),
        (("--rank", "2", "--target-macs", "0.5"), "not both", 1),
        (("--rank", "vbmf"), "Nothing would be factorized", 1),
        (("--target-macs", "0.01"), "cannot be reached", 1),
        (("--rank", "2", "--fit", "inputs"), "need calibration data", 1),
        (("--rank", "2", "--exclude", "nothing"), "No layer to leave alone", 1),
    ],
)
def test_what_cannot_be_is_said(words: tuple[str, ...], said: str, code: int, secateur: Secateur) -> None:
    done = secateur("decompose", "cli.models:convnet", *IMAGE, *words, "--dry-run")
    assert done.code == code
    assert said in " ".join(done.err.split())


def test_the_cheaper_way_is_found_recovered_between_and_saved(secateur: Secateur, tmp_path: Path) -> None:
    words = ("--cheaper", "--target-macs", "0.4", "--data", "cli.models:samples", "--out", tmp_path / "out")
    done = secateur("compress", "cli.models:convnet", *IMAGE, *words, *QUIET)
    assert done.code == 0, done.err
    assert done.data["plan"]["settings"]["way"] == "cheaper"
    assert done.data["after"]["macs"] <= 0.4 * done.data["before"]["macs"]
    assert done.data["plan"]["edits"]
    assert any("recovered after the proof by refit" in note for note in done.data["notes"])
    again = secateur("prove", tmp_path / "out", "cli.models:convnet", "--json")
    assert again.code == 0, again.err
    assert again.data["recovered"]


@pytest.mark.parametrize("words", [("decompose",), ("compress", "--cheaper", "--data", "cli.models:samples")], ids=" ".join)
def test_a_latency_is_a_target_of_ranks_and_of_both_ways(
    words: tuple[str, ...], secateur: Secateur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = on_own_clocks(monkeypatch, Stairs(step=0.001))
    found = ("--target-latency", 0.6, "--out", tmp_path / "out")
    done = secateur(words[0], "cli.models:convnet", *IMAGE, *words[1:], *found, *QUIET)
    assert done.code == 0, done.err
    told = done.data["plan"]["settings"]["latency"]
    assert told["measured_ms"]["compressed"] / told["measured_ms"]["dense"] <= 0.6
    assert done.data["after"]["parameters"] <= 0.6 * done.data["before"]["parameters"]
    assert clocks.runs


def test_bytes_are_a_target_of_ranks(secateur: Secateur) -> None:
    words = ("--target-bytes", "0.6", "--dry-run", "--json")
    done = secateur("decompose", "cli.models:convnet", *IMAGE, *words)
    assert done.code == 0, done.err
    assert done.data["plan"]["settings"]["decomposition"]["target"] == "Target(bytes=0.6)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "needs calibration data"),
        (("--ratio", "0.5"), "nothing else"),
        (("--target-macs", "0.5", "--heads", "0.5"), "nothing else"),
        (("--criterion", "l2"), "leave out --criterion"),
        (("--minimum", "4"), "leave out --criterion"),
    ],
)
def test_the_cheaper_way_takes_a_target_and_data(words: tuple[str, ...], said: str, secateur: Secateur, tmp_path: Path) -> None:
    done = secateur("compress", "cli.models:convnet", *IMAGE, "--cheaper", *words, "--out", tmp_path / "out", *QUIET)
    assert done.code == 1
    assert said in " ".join(done.err.split())


def test_errors_alike_and_strictness_are_options(secateur: Secateur) -> None:
    words = ("decompose", "cli.models:convnet", *IMAGE, "--target-macs", 0.8, "--data", "cli.models:samples", "--dry-run", "--json")
    assert not any(edit["weighted"] for edit in secateur(*words, "--no-weighted").data["plan"]["edits"])
    assert all(edit["weighted"] for edit in secateur(*words).data["plan"]["edits"])
    strict = secateur("decompose", "cli.models:convnet", *IMAGE, "--rank", "5", "--strict", "--dry-run")
    assert strict.code == 1
    assert "6: rank (5,) is outside 1 to 4" in strict.err
