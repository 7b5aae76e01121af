"""The same settings make the same plan from the command line, from a file, and from Python."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from cli.conftest import IMAGE, Secateur
from cli.models import branching, convnet, samples
from secateur.allocate import Options
from secateur.allocate.options import StepOp
from secateur.cli.registry import ALLOCATORS, CRITERIA
from secateur.cli.selection import Calibration
from secateur.pipeline import apply, compress
from secateur.plan import Edit, Plan
from secateur.score import GeometricMedian, GroupPolicy, LayerNorm, Random, calibrate
from secateur.study import Study, study
from secateur.sweep import sweep
from secateur.target import Target

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


def from_words(secateur: Secateur, *words: object, model: str = "convnet") -> tuple[Edit, ...]:
    done = secateur("prune", f"cli.models:{model}", *IMAGE, "--seed", 3, *words, "--dry-run", "--json")
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


def branches() -> Study:
    torch.manual_seed(3)
    return study(branching().eval(), torch.randn(2, 3, 4, 4))


OPTIONS: list[dict[str, Any]] = [
    {"policy": "sum", "layer_norm": "none"},
    {"policy": "backward", "criterion": "nn"},
    *({"layer_norm": each, "allocator": "global_rank"} for each in get_args(LayerNorm)),
    *({"group_policy": each, "allocator": "global_rank"} for each in get_args(GroupPolicy)),
    *({"reshape_channel_axis": each} for each in (0, 1, -1, -2)),
    *({"step_size": 4, "step_op": each} for each in get_args(StepOp)),
    {"step_size": None},
    {"reverse": True},
    {"minimum": 13},
    {"criterion": "l2", "fold_bn": True},
    {"criterion": "gm", "mix": 0.3},
    {"criterion": "snp", "gamma": 0.5},
    {"criterion": "snp", "gamma": 2},
    {"criterion": "nn", "samples": 5},
    {"criterion": "random"},
    {"allocator": "slamp", "layer_norm": "none"},
    {"allocator": "isomorphic"},
    {"exclude": ["v", "out"]},
    {"heads": 0.5},
    {"target_macs": 0.6, "ratio": None},
    {"target_params": 0.6, "ratio": None, "step_size": 2},
]
"""Settings by the names that a file has for them; where no ratio is said it is 0.4."""


def in_python(settings: Mapping[str, Any]) -> tuple[Edit, ...]:
    given = {"ratio": 0.4, "criterion": "l2", "allocator": None, "samples": 256, **settings}
    options = Options(**{f.name: given.pop(f.name) for f in fields(Options) if f.name in given})
    target = Target(given.pop("target_macs", None), given.pop("target_params", None)) if given["ratio"] is None else None
    kind, names = CRITERIA.entries[given.pop("criterion")], ("fold_bn", "mix", "gamma")
    own = {name: given.pop(name) for name in names if name in given} | ({"seed": 3} if kind is Random else {})
    allocator = given.pop("allocator")
    chosen = None if allocator is None else ALLOCATORS.entries[allocator]()
    return branches().plan(kind(**own), allocator=chosen, options=options, target=target, data=samples(), **given).edits


def written(settings: Mapping[str, Any], suffix: str) -> str:
    given = {"ratio": 0.4, "data": "cli.models:samples", **settings}
    if suffix == "json":
        return json.dumps(given)
    told = {key: "none" if key == "step_size" and value is None else value for key, value in given.items()}
    return "".join(f"{key.replace('_', '-')} = {json.dumps(value)}\n" for key, value in told.items() if value is not None)


def as_words(settings: Mapping[str, Any]) -> list[object]:
    out: list[object] = []
    for key, value in {"ratio": 0.4, "data": "cli.models:samples", **settings}.items():
        for each in value if isinstance(value, list) else [value]:
            if each is not None or key == "step_size":
                out += [f"--{key.replace('_', '-')}", *([] if each is True else ["none" if each is None else each])]
    return out


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_every_option_means_the_same_from_everywhere(settings: dict[str, Any], secateur: Secateur, tmp_path: Path) -> None:
    expected = in_python(settings)
    assert expected
    assert from_words(secateur, *as_words(settings), model="branching") == expected
    for suffix in ("toml", "json"):
        path = tmp_path / f"settings.{suffix}"
        path.write_text(written(settings, suffix))
        assert from_words(secateur, "--config", path, model="branching") == expected


def test_the_settings_make_different_plans() -> None:
    plain, defaults = in_python({}), [{"reshape_channel_axis": 1}, {"reshape_channel_axis": -1}, {"step_size": 4, "step_op": "none"}]
    assert [settings for settings in OPTIONS if in_python(settings) == plain] == defaults


@pytest.mark.parametrize("more", [{}, {"step_size": 1}, {"policy": "sum"}], ids=str)
def test_compressing_with_the_same_options(more: dict[str, Any], secateur: Secateur, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, x = branching().eval(), torch.randn(2, 3, 4, 4)
    options = Options(**more) if more else None
    expected = compress(model, x, target=Target(macs=0.6), options=options, latency=False).plan
    words = [word for key, value in more.items() for word in (f"--{key.replace('_', '-')}", value)]
    place = (tmp_path / "out", "--no-latency", "--no-onnx")
    done = secateur("compress", "cli.models:branching", *IMAGE, "--seed", 3, "--target-macs", 0.6, *words, "--out", *place)
    assert done.code == 0, done.err
    found = Plan.load(tmp_path / "out" / "plan.json")
    assert (found.edits, found.settings["options"]) == (expected.edits, expected.settings["options"])


def test_as_many_samples_are_used_from_everywhere() -> None:
    works = (Study.scores, Study.plan, Study.plan_decomposition, Study.after, apply, calibrate, sweep)
    assert {signature(work).parameters["samples"].default for work in works} == {Calibration().samples}


@pytest.mark.parametrize(
    ("text", "message"), [("step-size = 2.5", "--step-size"), ("minimum = true", "--minimum"), ("reverse = 2", "--reverse")]
)
def test_values_that_could_not_be_typed_are_refused_from_a_file(text: str, message: str, secateur: Secateur, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    done = secateur("prune", "cli.models:convnet", *IMAGE, "--ratio", 0.5, "--config", path, "--dry-run")
    assert done.code == 2
    assert message in done.err
