"""`secateur finetune`: a saved directory in, a trained and proven one out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import secateur as sc
from cli.conftest import IMAGE, Secateur
from cli.models import convnet

LESSONS = ("--data", "cli.lessons:images", "--validation", "cli.lessons:images", "--batch-size", 8, "--no-onnx")


def test_a_saved_model_is_trained_proven_and_saved(secateur: Secateur, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    done = secateur("finetune", saved, *LESSONS, "--epochs", 3, "--rate", 0.1, "--teacher", "dense", "--out", out, "--json")
    assert done.code == 0, done.err
    metrics = done.data["metrics"]
    assert metrics["top-1 after fine-tuning"] > metrics["top-1 before fine-tuning"]
    assert "top-1 of the dense model" in metrics
    assert set(done.data["training"]["epochs"][0]["parts"]) == {"labels", "logits"}
    assert json.loads((out / "report.json").read_text())["metrics"] == metrics
    small, tuned = (sc.load(path, into=convnet()).state_dict() for path in (saved, out))
    assert {name: value.shape for name, value in tuned.items()} == {name: value.shape for name, value in small.items()}
    assert not torch.equal(tuned["0.weight"], small["0.weight"])
    assert "metrics" in secateur("report", out, "--json").data
    plain, lenient = secateur("prove", out), secateur("prove", out, "--recovered")
    assert (plain.code, lenient.code) == (0, 0)
    assert "tensors were changed after the cut by training: " in plain.out


def test_again_from_the_trained_directory_with_features_of_the_dense_model(secateur: Secateur, saved: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    common = (*LESSONS, "--epochs", 1, "--metric", "cli.lessons:darkness")
    assert secateur("finetune", saved, *common, "--out", first).code == 0
    taught = ("--teacher", "dense", "--feature-weight", 1.0, "--features", "0")
    done = secateur("finetune", first, *common, *taught, "--out", second, "--json")
    assert done.code == 0, done.err
    assert done.data["training"]["features"] == ["0"]
    assert "darkness after fine-tuning" in done.data["metrics"]


def test_a_graph_of_factors_is_trained_too(secateur: Secateur, tmp_path: Path) -> None:
    cut, out = tmp_path / "cut", tmp_path / "tuned"
    how = ("--rank", 2, "--accept-dearer", "--prefer", "graph", "--no-latency", "--no-onnx")
    assert secateur("decompose", "cli.models:convnet", *IMAGE, *how, "--out", cut).code == 0
    taught = ("--teacher", "dense", "--feature-weight", 0.5, "--features", "0")
    done = secateur("finetune", cut, *LESSONS, "--epochs", 1, *taught, "--metric", "cli.lessons:brightness", "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.data["kind"] == "graph"
    assert "weights of epoch 1" in " ".join(done.data["notes"])


def test_a_folder_of_images_a_share_of_which_is_held_out(secateur: Secateur, saved: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label in range(4):
        (tmp_path / "photos" / f"class{label}").mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 64, (6, 6, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"class{label}" / f"{number}.png")
    out = tmp_path / "tuned"
    options = ("--holdout", 0.2, "--epochs", 1, "--batch-size", 4, "--no-onnx")
    done = secateur("finetune", saved, "--data", tmp_path / "photos", *options, "--out", out, "--json")
    assert done.code == 0, done.err
    assert done.data["training"]["steps"] == 4
    assert "top-1 after fine-tuning" in done.data["metrics"]


def test_options_out_of_a_file_and_a_loss_of_the_users_own(secateur: Secateur, saved: Path, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('epochs = 2\noptimizer = "adamw"\nloss = "cli.lessons:squared"\nrate = 0.02\n')
    done = secateur("finetune", saved, *LESSONS, "--config", config, "--out", tmp_path / "tuned", "--json")
    assert done.code == 0, done.err
    assert "optimizer='adamw'" in done.data["training"]["settings"]
    assert "best='lowest'" in done.data["training"]["settings"]
    assert done.data["metrics"]["loss after fine-tuning"] < done.data["metrics"]["loss before fine-tuning"]


def test_a_run_resumes(secateur: Secateur, saved: Path, tmp_path: Path) -> None:
    common = ("finetune", saved, *LESSONS, "--epochs", 1, "--checkpoints", tmp_path / "state")
    assert secateur(*common, "--out", tmp_path / "first").code == 0
    refused = secateur(*common, "--out", tmp_path / "second")
    assert (refused.code, "resume" in refused.err) == (1, True)
    assert secateur(*common, "--out", tmp_path / "second", "--resume").code == 0
    one, other = (sc.load(tmp_path / name, into=convnet()).state_dict() for name in ("first", "second"))
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=0)


def test_nothing_is_saved_that_is_not_proven(secateur: Secateur, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = sys.modules["secateur.cli.finetune"]

    def refuse(*_: Any, **__: Any) -> Any:
        raise sc.ProofError("not equal")

    with monkeypatch.context() as patch:
        patch.setattr(command, "proven_directory", refuse)
        done = secateur("finetune", saved, *LESSONS, "--epochs", 1, "--out", tmp_path / "tuned")
    assert (done.code, "not equal" in done.err) == (1, True)
    loads = iter([sc.load(saved, into=convnet()), convnet().eval()])
    monkeypatch.setattr(command, "load", lambda *_, **__: next(loads))
    done = secateur("finetune", saved, *LESSONS, "--epochs", 1, "--out", tmp_path / "tuned")
    assert (done.code, "read back" in done.err) == (1, True)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "nowhere:at_all"), "nowhere"),
        (("--data", "cli.lessons:images", "--metric", "top1"), "--validation"),
        (("--data", "cli.lessons:images", "--patience", 2), "metric"),
        (("--data", "cli.lessons:images", "--epochs", 0), "epochs"),
    ],
)
def test_what_cannot_be_done_is_said(secateur: Secateur, saved: Path, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    done = secateur("finetune", saved, *options, "--out", tmp_path / "tuned")
    assert done.code == 1
    assert message in done.err
    assert not (tmp_path / "tuned").exists()
