"""The command that sweeps over targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import IMAGE, Secateur

MODEL = ("sweep", "cli.models:convnet", *IMAGE, "--data", "cli.models:samples")


def test_it_writes_what_it_says(secateur: Secateur, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = secateur(*MODEL, "--targets", "0.8,0.5", "--evaluate", "cli.lessons:brightness", "--out", out, "--json")
    assert done.code == 0, done.err
    assert [row["target"] for row in done.data["points"]] == [0.8, 0.5]
    assert done.data["metric"] == "brightness"
    told = json.loads((out / "sweep.json").read_text())
    assert told["points"] == done.data["points"]
    assert {file.name for file in out.iterdir()} == {"sweep.json", "sweep.svg", "sweep.txt", "plan-0.8.json", "plan-0.5.json"}
    applied = secateur("apply", "cli.models:convnet", out / "plan-0.5.json", *IMAGE, "--out", tmp_path / "small", "--no-latency", "--json")
    assert applied.code == 0, applied.err
    assert applied.data["after"]["macs"] == told["points"][1]["macs"]


def test_plans_remember_their_model_and_are_those_of_compress(secateur: Secateur, tmp_path: Path) -> None:
    done = secateur(*MODEL, "--targets", "0.5", "--json")
    assert done.code == 0, done.err
    [point] = done.data["points"]
    assert point["plan"]["settings"]["source"]["model"] == "cli.models:convnet"
    one = secateur("compress", *MODEL[1:], "--target-macs", 0.5, "--out", tmp_path / "out", "--no-latency", "--no-onnx", "--json")
    assert one.data["plan"]["edits"] == point["plan"]["edits"]
    assert "directory" not in done.data


def test_settings_reach_the_sweep(secateur: Secateur) -> None:
    options = ("--of", "params", "--criterion", "gm", "--recover", "none", "--exclude", "6", "--latency")
    done = secateur(*MODEL, "--targets", "0.8", *options, "--json")
    assert done.code == 0, done.err
    [point] = done.data["points"]
    assert done.data["quantity"] == "parameters"
    assert [edit["group"] for edit in point["plan"]["edits"]] == ["0"]
    assert point["plan"]["settings"]["criterion"].startswith("GeometricMedian")
    assert point["latency"]["compressed"]["repeats"] > 0


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        (("--targets", "0.8,half"), 2, "numbers between commas"),
        (("--targets", "2"), 1, "between 0 and 1"),
        (("--evaluate", "cli.lessons:nothing_such"), 1, "nothing_such"),
    ],
)
def test_wrong_use_is_told(secateur: Secateur, options: tuple[str, ...], code: int, match: str) -> None:
    done = secateur(*MODEL, *options)
    assert done.code == code
    assert match in " ".join(done.err.split())


def test_a_place_that_is_taken_is_refused_before_the_work(secateur: Secateur, tmp_path: Path) -> None:
    done = secateur("sweep", "cli.models:no_such_model", *IMAGE, "--out", tmp_path)
    assert done.code == 1
    assert "exists already" in done.err
