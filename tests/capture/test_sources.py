"""Models and inputs as the command line names them."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import nn
from torch.export import ExportedProgram

from capture.models import ConvNet, Tied
from capture.onnx.files import write
from secateur.capture import load_inputs, load_model, parse_input, sources
from secateur.capture.onnx import OnnxModel
from secateur.errors import CaptureError, FileError, MissingExtraError, ModelError, UsageError

WEIGHT = {"w": np.ones((3, 4), np.float32)}


def test_factories_are_found_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\nclass Zoo:\n    small = staticmethod(lambda: nn.Linear(2, 3))\nnothing = int\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in importlib.import_module("sys").path if path])
    model = load_model("my_models:Zoo.small")
    assert isinstance(model, nn.Linear)
    with pytest.raises(ModelError, match="my_models:nothing returned a int"):
        load_model("my_models:nothing")
    with pytest.raises(UsageError, match="Cannot find my_models:absent"):
        load_model("my_models:absent")


@pytest.mark.parametrize("spec", ["resnet18", "no.such.module:f", "m.onnx:", ":x"])
def test_names_that_mean_nothing(spec: str) -> None:
    with pytest.raises(UsageError, match="torchvision:NAME"):
        load_model(spec)


def test_failures_of_a_factory_are_told() -> None:
    with pytest.raises(ModelError, match=r"Building torch\.nn:Linear failed: TypeError"):
        load_model("torch.nn:Linear")


@pytest.mark.parametrize(("spec", "package", "extra"), [("timm:x", "timm", "vision"), ("hf:x", "transformers", "transformers")])
def test_missing_packages_name_their_extra(spec: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"secateur\[{extra}\]"):
        load_model(spec)


def test_a_torchvision_detector_comes_without_fetching_its_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were to be fetched")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    model = load_model("torchvision:ssdlite320_mobilenet_v3_large")
    assert isinstance(model, nn.Module)


def test_torchvision_by_name() -> None:
    pytest.importorskip("torchvision")
    model = load_model("torchvision:squeezenet1_1")
    assert type(model).__name__ == "SqueezeNet"


def test_transformers_by_configuration(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path)
    assert type(load_model(f"hf:{tmp_path / 'config.json'}")).__name__ == "BertForMaskedLM"


def test_exported_files(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), path)
    assert isinstance(load_model(str(path)), ExportedProgram)
    with pytest.raises(UsageError, match="--weights"):
        load_model(str(path), weights=path)
    path.write_bytes(b"no archive")
    with pytest.raises(FileError, match="cannot be read as an exported program"):
        load_model(str(path))
    with pytest.raises(FileError, match="There is no file"):
        load_model(str(tmp_path / "absent.pt2"))


def test_pickles_need_trust(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(nn.Linear(2, 3), path)
    with pytest.raises(UsageError, match="--trust-pickle"):
        load_model(str(path))
    assert isinstance(load_model(str(path), trust_pickle=True), nn.Linear)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(FileError, match="holds a dict"):
        load_model(str(path), trust_pickle=True)


def test_weights_in_a_pickle_of_more_than_tensors_need_trust(tmp_path: Path) -> None:
    path, model = tmp_path / "m.pt", nn.Linear(2, 3)
    for content in (model, {"model": model.state_dict(), "arguments": Namespace(epochs=3)}):
        torch.save(content, path)
        with pytest.raises(FileError, match="--trust-pickle"):
            sources.load_weights(nn.Linear(2, 3), path)
        other = nn.Linear(2, 3)
        sources.load_weights(other, path, trust_pickle=True)
        torch.testing.assert_close(other.state_dict(), model.state_dict())


def test_onnx_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": np.ones((2, 3), np.float32)}, ["y"], WEIGHT)
    model = load_model(str(path), inputs={"x": torch.ones(2, 3)})
    assert isinstance(model, OnnxModel)
    torch.testing.assert_close(model(torch.ones(2, 3)), torch.full((2, 4), 3.0))
    with pytest.raises(CaptureError, match="on the given inputs"):
        load_model(str(path), inputs={"x": torch.ones(2, 5)})
    with pytest.raises(UsageError, match="--weights"):
        load_model(str(path), weights=path)


@pytest.mark.parametrize("nesting", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_in_their_usual_forms(nesting: str | None, prefix: str, tmp_path: Path) -> None:
    source, path = ConvNet(), tmp_path / "w.pth"
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({nesting: state, "epoch": 3} if nesting else state, path)
    model = load_model("capture.models:ConvNet", weights=path)
    assert isinstance(model, nn.Module)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_safetensors_without_the_second_name_of_a_tied_tensor(tmp_path: Path) -> None:
    source, path = Tied(), tmp_path / "w.safetensors"
    save_file({"embed.weight": source.embed.weight.detach()}, path)
    model = load_model("capture.models:Tied", weights=path)
    assert isinstance(model, Tied)
    assert torch.equal(model.head.weight, source.embed.weight)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"embed.weight": torch.ones(7, 5), "more": torch.ones(1)}, path)
    with pytest.raises(FileError, match=r"(?s)unknown: more.*shape of embed.weight: \[7, 5\] in the file, \[7, 4\] in the model"):
        load_model("capture.models:Tied", weights=path)
    torch.save({"other.weight": torch.ones(7, 4)}, path)
    with pytest.raises(FileError, match=r"(?s)missing: embed.weight.*missing: head.weight.*unknown: other.weight"):
        load_model("capture.models:Tied", weights=path)


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code ran",))


@pytest.mark.parametrize("content", [b"rubbish", None])
def test_weights_never_run_code(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.pt"
    if content:
        path.write_bytes(content)
    else:
        torch.save({"embed.weight": Code()}, path)
    with pytest.raises(FileError, match="cannot be read as weights"):
        load_model("capture.models:Tied", weights=path)
    assert "code ran" not in capsys.readouterr().out


def test_inputs_from_text() -> None:
    image = parse_input("1x3x4x5")
    assert (tuple(image.shape), image.dtype) == ((1, 3, 4, 5), torch.float32)
    assert torch.equal(image, parse_input("1x3x4x5"))
    ids = parse_input("2x50:int64<7")
    assert (ids.dtype, int(ids.min()), int(ids.max())) == (torch.int64, 0, 6)
    assert parse_input("3:bool").dtype is torch.bool
    assert parse_input("3:float16").dtype is torch.float16
    for wrong in ("", "1xa", "1x0", "2:floaty", "2:int64<some", "2:int64<0", "2:Tensor"):
        with pytest.raises(UsageError, match="Cannot read the input"):
            parse_input(wrong)


def test_inputs_from_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, ids=np.arange(3), mask=np.ones((1, 3), dtype=np.float32))
    named = load_inputs(path)
    assert isinstance(named, dict)
    assert {name: tensor.dtype for name, tensor in named.items()} == {"ids": torch.int64, "mask": torch.float32}
    np.savez(path, *[np.full(1, value) for value in range(11)])
    ordered = load_inputs(path)
    assert isinstance(ordered, tuple)
    assert [int(tensor) for tensor in ordered] == list(range(11))
    np.savez(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(FileError, match="no readable"):
        load_inputs(path)
