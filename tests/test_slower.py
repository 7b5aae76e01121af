"""Smaller models that measure slower than the dense one, by made-up measurements: whoever times them says so."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import secateur as sc
from secateur.cli import app
from secateur.decompose import SpatialSVD
from secateur.measure import Latency
from secateur.pipeline import compress
from secateur.report import console_report, json_report
from secateur.study.wish import Decompose

PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.Flatten(), nn.Linear(256, 4)).eval()


@pytest.fixture(params=[(2.0, 2.5), (2.0, 1.5)], ids=["slower", "faster"])
def measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is to be said where all models are measured to take these milliseconds, dense and compressed."""
    dense, small = request.param

    def compare(*_: object, **__: object) -> dict[str, Latency]:
        return {name: Latency(ms, 0, 0, 0, 1, 1, "", "", 1, 1, "") for name, ms in (("dense", dense), ("compressed", small))}

    for place in ("pipeline", "cli.results", "sweep.trial"):
        monkeypatch.setattr(import_module(f"secateur.{place}"), "compare_latency", compare)
    return ["the compressed model measured slower than the dense one: 2.5 ms against 2 ms"] if small > dense else []


def slower(notes: Iterable[str]) -> list[str]:
    return [note for note in notes if "slower" in note]


@pytest.mark.parametrize("wish", [{}, {"ratio": 0.5}, {"decompose": Decompose(SpatialSVD())}], ids=["automatic", "ratio", "factors"])
def test_a_result_that_measures_slower_than_dense_says_so(wish: dict[str, Any], measured: list[str]) -> None:
    result = compress(network(), PIXELS, **wish)
    assert result.latency["compressed"].median_ms in (1.5, 2.5)
    assert slower(result.notes) == measured
    assert slower(json.loads(json_report(result))["notes"]) == measured
    written = io.StringIO()
    Console(file=written, width=400).print(console_report(result))
    assert all(note in written.getvalue() for note in measured)


@pytest.mark.parametrize("command", [("compress",), ("prune", "--ratio", 0.5)], ids=lambda words: words[0])
def test_a_command_whose_result_measures_slower_says_so(command: tuple[Any, ...], measured: list[str], tmp_path: Path) -> None:
    words = ("cli.models:convnet", "--input", "2x3x4x4", *command[1:], "--out", tmp_path / "out", "--no-onnx", "--json")
    done = CliRunner().invoke(app, [str(word) for word in (command[0], *words)])
    assert done.exit_code == 0, done.stderr
    assert slower(json.loads(done.stdout)["notes"]) == measured


def test_a_point_of_a_sweep_that_measures_slower_says_so(measured: list[str]) -> None:
    found = sc.sweep(network(), PIXELS, [0.6], latency=True)
    assert [slower(point.notes) for point in found.points] == [measured]
