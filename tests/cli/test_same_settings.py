"""The same settings make the same plan from the command line, from a file, and from Python."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch

from cli.conftest import IMAGE, Secateur
from cli.models import convnet
from secateur.allocate import Options
from secateur.plan import Edit, Plan
from secateur.score import GeometricMedian
from secateur.study import study

FILE = """
criterion = "gm"
mix = 0.25
policy = "sum"
layer-norm = "tss_norm"
step-size = 2

[ratios]
"0" = 0.5

[indices]
"3" = [0, 4]
"""
WORDS = ("--criterion", "gm", "--mix", 0.25, "--policy", "sum", "--layer-norm", "tss_norm", "--step-size", 2, "--ratios", "0=0.5")


@pytest.fixture(scope="module")
def edits() -> tuple[Edit, ...]:
    torch.manual_seed(3)
    options = Options(policy="sum", layer_norm="tss_norm", step_size=2)
    found = study(convnet().eval(), torch.randn(2, 3, 4, 4))
    return found.plan(GeometricMedian(mix=0.25), ratios={"0": 0.5}, indices={"3": [0, 4]}, options=options).edits


def from_words(secateur: Secateur, *words: object) -> tuple[Edit, ...]:
    done = secateur("prune", "cli.models:convnet", *IMAGE, "--seed", 3, *words, "--dry-run", "--json")
    assert done.code == 0, done.err
    return Plan.from_json(json.dumps(done.data["plan"])).edits


def test_from_the_command_line(edits: tuple[Edit, ...], secateur: Secateur) -> None:
    assert from_words(secateur, *WORDS, "--indices", "3=0,4") == edits
    assert [len(edit.remove) for edit in edits] == [4, 2]


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_from_a_file(suffix: str, edits: tuple[Edit, ...], secateur: Secateur, tmp_path: Path) -> None:
    path = tmp_path / f"settings.{suffix}"
    path.write_text(FILE if suffix == "toml" else json.dumps(tomllib.loads(FILE)))
    assert from_words(secateur, "--config", path) == edits


def test_a_target_of_latency_from_the_command_line(secateur: Secateur) -> None:
    done = secateur("prune", "cli.models:convnet", *IMAGE, "--target-latency", 0.001, "--dry-run")
    assert done.code == 1
    assert "Target(latency=0.001) was not reached: the model that was timed took" in " ".join(done.err.split())
