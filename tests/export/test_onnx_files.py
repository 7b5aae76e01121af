"""From an ONNX file to a smaller one: read, cut to half, proven, saved under the same names, and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from capture.onnx.files import export


class ConvNet(nn.Module):
    """Batch norm, a residual, a depthwise and a transposed convolution, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 16, 1), nn.Hardswish(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1))
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = self.up(F.max_pool2d(x + self.inner(x), 2))
        found: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return found


class Attention(nn.Module):
    """A transformer's block with one projection for queries, keys and values, before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        found: Tensor = self.head(x + self.mlp(x))
        return found


class Tagger(nn.Module):
    """Words by number, a recurrent layer, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.lstm(self.words(ids))[0]
        return self.head(states), (states * mask[..., None]).mean((1, 2))


@dataclass(frozen=True)
class Case:
    model: type[nn.Module]
    inputs: tuple[Tensor, ...]
    opset: int
    dynamo: bool = False
    names: tuple[str, ...] = ("in.0",)
    outputs: tuple[str, ...] = ("out/0",)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.model.__name__}-{'dynamo' if self.dynamo else 'old'}-{self.opset}"

    def load(self, folder: Path) -> sc.OnnxModel:
        torch.manual_seed(0)
        names = {"input_names": list(self.names), "output_names": list(self.outputs)}
        return sc.load_onnx(export(self.model(), self.inputs, folder / "m.onnx", self.opset, dynamo=self.dynamo, **names, **self.settings))


IMAGE, TOKENS = (torch.randn(2, 3, 8, 8),), (torch.randn(2, 5, 6),)
TEXT = torch.randint(0, 20, (2, 7)), torch.ones(2, 7)
WORDS: dict[str, Any] = {"names": ("ids", "mask"), "outputs": ("tags", "mean")}
OPEN = {"dynamic_axes": {"in.0": {0: "batch"}}}
CASES = [
    *(Case(ConvNet, IMAGE, opset) for opset in (13, 15, 20)),
    *(Case(Attention, TOKENS, opset, settings=OPEN) for opset in (14, 17)),
    *(Case(Tagger, TEXT, opset, **WORDS) for opset in (13, 18)),
    Case(Attention, TOKENS, 20, dynamo=True),
]
SAVED = [
    Case(ConvNet, IMAGE, 16, settings=OPEN),
    Case(Attention, TOKENS, 19, settings=OPEN),
    Case(Tagger, TEXT, 16, **WORDS),
]


def halved(model: sc.OnnxModel, inputs: tuple[Tensor, ...]) -> sc.Result:
    study = sc.study(model, inputs)
    assert not study.layers.unknown
    assert study.layers.prunable_parameters > 0.8
    return sc.apply(study, study.plan(sc.L2(), ratio=0.5))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_file_is_cut_to_half_and_proven(case: Case, tmp_path: Path) -> None:
    result = halved(case.load(tmp_path), case.inputs)
    assert result.proof.holds
    assert result.after.macs < 0.6 * result.before.macs


@pytest.mark.parametrize("case", SAVED, ids=str)
def test_a_smaller_file_has_the_same_names(case: Case, tmp_path: Path) -> None:
    model = case.load(tmp_path)
    result = halved(model, case.inputs)
    out = result.save(tmp_path / "out")
    assert json.loads((out / "plan.json").read_text())["left_out"] == {}
    again = sc.load_onnx(out / "model.onnx", inputs=case.inputs)
    assert tuple(again.file_names.inputs.values()) == case.names
    assert again.file_names.outputs == case.outputs
    assert again.ports[0].open == ("dynamic_axes" in case.settings or case.model is Tagger)
    with torch.no_grad():
        torch.testing.assert_close(again(*case.inputs), result.model(*case.inputs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sc.load(out)(*case.inputs), result.model(*case.inputs), rtol=1e-4, atol=1e-5)
    if result.kind == "module":
        assert isinstance(sc.load(out, into=model), sc.OnnxModel)


def test_layers_of_a_file_can_be_factorized(tmp_path: Path) -> None:
    model = Case(ConvNet, IMAGE, 17).load(tmp_path)
    study = sc.study(model, IMAGE)
    result = sc.apply(study, study.plan_decomposition(rank={"inner.0": 2, "head": 2}))
    assert result.proof.holds
    assert {row.layer for row in result.factorized} == {"inner.0", "head"}
