"""Commands that do their work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.conftest import IMAGE, Secateur
from cli.models import convnet
from secateur.cli.destination import command_line
from secateur.export import load
from secateur.plan import Plan

COMMANDS = ("layers", "prune", "apply", "compress", "prove", "bench", "report", "demo")


def test_help_lists_every_command(secateur: Secateur) -> None:
    done = secateur("--help")
    assert done.code == 0
    assert all(re.search(rf"\b{name}\b", done.out) for name in COMMANDS)


def test_python_runs_the_package_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "secateur", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout


def test_reports_name_a_command_that_can_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/any/where/secateur/__main__.py", "report", "a b"])
    assert command_line() == "python -m secateur report 'a b'"
    monkeypatch.setattr("sys.argv", ["/usr/bin/secateur", "report", "out"])
    assert command_line() == "secateur report out"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str, secateur: Secateur) -> None:
    done = secateur(name, "--help")
    assert done.code == 0
    assert f"Example: secateur {name}" in done.out
    assert "--debug" in done.out


def test_layers_for_people(secateur: Secateur) -> None:
    done = secateur("layers", "cli.models:convnet", *IMAGE)
    assert done.code == 0
    assert "2 of 3 layers can be cut" in done.out
    assert "no: reaches the" in done.out


def test_layers_for_machines(secateur: Secateur) -> None:
    done = secateur("layers", "cli.models:loud", *IMAGE, "--json")
    assert [(row["name"], row["prunable"]) for row in done.data["layers"]] == [("0", True), ("3", True), ("6", False)]
    assert "this factory talks" in done.err


def test_inputs_by_place_and_by_name(secateur: Secateur, tmp_path: Path) -> None:
    named = secateur("layers", "cli.models:Pair", "--input", "5x3", "--input", "index=5:int64<11", "--json")
    assert named.code == 0, named.err
    np.savez(tmp_path / "x.npz", x=np.ones((5, 3), dtype=np.float32), index=np.arange(5))
    assert secateur("layers", "cli.models:Pair", "--inputs", tmp_path / "x.npz", "--json").data == named.data


def test_a_dry_run_writes_the_plan_alone(secateur: Secateur, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = secateur("prune", "cli.models:convnet", *IMAGE, "--indices", "0=1,2", "--dry-run", "--plan", file, "--json")
    assert done.code == 0, done.err
    assert list(tmp_path.iterdir()) == [file]
    assert {edit.group: edit.remove for edit in Plan.load(file).prunes} == {"0": (1, 2)}
    assert json.loads(file.read_text()) == done.data["plan"]


@pytest.mark.parametrize(
    ("words", "ratios"),
    [
        (["--ratio", 0.5], {"0": 0.5, "3": 0.5}),
        (["--ratios", "0=0.25", "--ratios", "[3]=0.5"], {"0": 0.25, "3": 0.5}),
        (["--ratio", 0.5, "--exclude", "3"], {}),
        (["--ratio", 0.5, "--exclude", "6"], {"0": 0.5}),
        (["--ratio", 0.5, "--step-size", 3, "--step-op", "round_down"], {"0": 0.625, "3": 0.5}),
        (["--ratio", 0.9, "--minimum", 4], {"0": 0.5, "3": 1 / 3}),
        (["--ratio", 0.5, "--criterion", "random", "--seed", 3], {"0": 0.5, "3": 0.5}),
        (["--ratio", 0.5, "--criterion", "nn", "--data", "cli.models:samples"], {"0": 0.5, "3": 0.5}),
    ],
)
def test_selections(words: list[object], ratios: dict[str, float], secateur: Secateur) -> None:
    done = secateur("prune", "cli.models:convnet", *IMAGE, *words, "--dry-run", "--json")
    if not ratios:
        assert done.code == 1
        return
    assert done.code == 0, done.err
    edits = done.data["plan"]["edits"]
    assert {edit["group"]: len(edit["remove"]) / edit["size"] for edit in edits} == pytest.approx(ratios)


def test_whole_heads(secateur: Secateur) -> None:
    done = secateur("prune", "cli.models:Attention", "--input", "2x3x8", "--heads", 0.5, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert [edit["kind"] for edit in done.data["plan"]["edits"]] == ["blocks"]


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_options_from_a_file(suffix: str, secateur: Secateur, tmp_path: Path) -> None:
    text = 'input = "2x3x4x4"\ndry-run = true\nstep_size = 2\nratio = 0.5\n[ratios]\n"0" = 0.25\n'
    file = tmp_path / f"options.{suffix}"
    file.write_text(text if suffix == "toml" else json.dumps(tomllib.loads(text)))
    done = secateur("prune", "cli.models:convnet", "--config", file, "--json")
    assert done.code == 0, done.err
    assert {edit["group"]: len(edit["remove"]) for edit in done.data["plan"]["edits"]} == {"0": 2, "3": 2}
    louder = secateur("prune", "cli.models:convnet", "--config", file, "--json", "--ratios", "0=0.5")
    assert {edit["group"]: len(edit["remove"]) for edit in louder.data["plan"]["edits"]} == {"0": 4, "3": 2}


def test_pruned_and_saved(saved: Path) -> None:
    names = {file.name for file in saved.iterdir()}
    assert {"model.safetensors", "plan.json", "model.pt2", "report.html", "report.json"} <= names
    small = load(saved, convnet())
    assert (small[0].out_channels, small[3].out_channels) == (4, 3)


def test_a_plan_applied_again_gives_the_same_model(saved: Path, secateur: Secateur, tmp_path: Path) -> None:
    words = ("apply", "cli.models:convnet", saved, *IMAGE, "--out", tmp_path / "again", "--no-latency", "--no-onnx", "--json")
    done = secateur(*words)
    assert done.code == 0, done.err
    assert done.data["proof"]["holds"]
    first, second = load(saved, convnet()).state_dict(), load(tmp_path / "again", convnet()).state_dict()
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_saved_files_are_proven_again(saved: Path, secateur: Secateur) -> None:
    done = secateur("prove", saved, "--json")
    assert done.code == 0, done.err
    assert done.data["proof"]["holds"]
    assert done.data["recovered"] == []
    assert "Proven equal" in secateur("prove", saved, "cli.models:convnet").out


def test_weights_that_changed_are_no_longer_proven(saved: Path, secateur: Secateur) -> None:
    done = secateur("prove", saved, "cli.models:convnet", "--seed", 1)
    assert done.code == 1
    assert "is not the kept part of the dense model's" in done.err
    again = secateur("prove", saved, "cli.models:convnet", "--seed", 1, "--recovered", "--json")
    assert again.code == 0, again.err
    assert "0.weight" in again.data["recovered"]


def test_bench_times_both(saved: Path, secateur: Secateur) -> None:
    done = secateur("bench", saved, "--repeats", 2, "--json")
    assert done.code == 0, done.err
    assert done.data["latency"]["eager"].keys() == {"dense", "compressed"}
    assert done.data["compressed"]["macs"] < done.data["dense"]["macs"]
    assert "there is no" in done.data["notes"][0]
    assert "latency, eager" in secateur("bench", saved, "--repeats", 2, "--eager-only").out


def test_bench_in_onnx_runtime(secateur: Secateur, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    words = ("prune", "cli.models:wider", *IMAGE, "--ratio", 0.5, "--out", tmp_path / "out", "--no-latency", "--json")
    assert secateur(*words).data["directory"] == str(tmp_path / "out")
    done = secateur("bench", tmp_path / "out", "--repeats", 2, "--json")
    assert done.code == 0, done.err
    assert done.data["latency"]["onnxruntime"].keys() == {"dense", "compressed"}


def test_the_report_is_read_back(saved: Path, secateur: Secateur) -> None:
    done = secateur("report", saved)
    assert done.code == 0, done.err
    assert "proven equal to the masked dense model" in done.out
    assert "Sequential (module): 2 of 3 layers cut" in done.out
    assert secateur("report", saved, "--json").data["page"] == str(saved / "report.html")


def test_compress_recovers_with_data(secateur: Secateur, tmp_path: Path) -> None:
    words = ("--data", "cli.models:samples", "--samples", 12, "--out", tmp_path / "out", "--no-latency", "--no-onnx", "--json")
    done = secateur("compress", "cli.models:convnet", *IMAGE, *words)
    assert done.code == 0, done.err
    assert done.data["remains"]["MACs"] <= 0.5
    assert any("recovered after the proof by refit on 12 calibration samples" in note for note in done.data["notes"])
    fitted = secateur("prove", tmp_path / "out", "--json").data["recovered"]
    assert secateur("prove", tmp_path / "out", "--recovered", "--json").data["recovered"] == fitted
    assert "3.weight" in fitted
    assert "0.weight" not in fitted


def test_the_recovery_can_be_chosen(secateur: Secateur, tmp_path: Path) -> None:
    words = ("--data", "cli.models:samples", "--samples", 12, "--no-latency", "--no-onnx", "--json", "--recover")
    done = secateur("compress", "cli.models:convnet", *IMAGE, "--out", tmp_path / "bn", *words, "bn", "--statistics", "anew")
    assert done.code == 0, done.err
    assert secateur("prove", tmp_path / "bn", "--json").data["recovered"] == ["1.running_mean", "1.running_var"]
    done = secateur("compress", "cli.models:convnet", *IMAGE, "--out", tmp_path / "none", *words, "none")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "none" / "plan.json").read_text())["recovered"] == []
    assert secateur("prove", tmp_path / "none").code == 0


def test_files_that_are_not_there_are_told(secateur: Secateur, tmp_path: Path) -> None:
    wanted = ("prune", "cli.models:half_precise", "--input", "2x3x4x4:bfloat16", "--ratio", 0.5, "--no-latency")
    done = secateur(*wanted, "--out", tmp_path / "one")
    assert done.code == 0, done.err
    assert "model.onnx was left out" in done.out
    told = json.loads(secateur(*wanted, "--out", tmp_path / "two", "--json").out)
    assert list(told["left_out"]) == ["model.onnx"]
