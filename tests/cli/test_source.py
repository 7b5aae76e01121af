"""Models and inputs as a command names them; a sign of life."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx import helper
from torch import nn

from capture.onnx.files import FLOAT, write
from cli.models import convnet
from secateur.cli import progress
from secateur.cli.default_inputs import default_inputs
from secateur.cli.source import Source
from secateur.errors import UsageError


def test_weights_and_inputs_follow_the_seed() -> None:
    first, again, other = (Source(model="cli.models:convnet", input=("2x3x4x4",), seed=seed).open() for seed in (1, 1, 2))
    assert isinstance(first.model, nn.Module)
    assert isinstance(again.model, nn.Module)
    assert isinstance(other.model, nn.Module)
    assert not first.model.training
    torch.testing.assert_close(first.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(next(first.model.parameters()), next(other.model.parameters()))
    assert torch.equal(first.inputs[0][0], again.inputs[0][0])
    assert not torch.equal(first.inputs[0][0], other.inputs[0][0])
    assert first.told == {"model": "cli.models:convnet", "input": ("2x3x4x4",), "seed": 1}


def test_two_inputs_of_one_shape_are_not_the_same() -> None:
    (first, second), _ = Source(model="cli.models:convnet", input=("4", "4")).open().inputs
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [("torchvision:squeezenet1_1", (1, 3, 224, 224)), ("torchvision:inception_v3", (1, 3, 299, 299)), ("timm:x", (1, 3, 96, 96))],
)
def test_models_of_packages_have_inputs_of_their_own(spec: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip("torchvision")
    model = convnet()
    model.pretrained_cfg = {"input_size": (3, 96, 96)}
    assert default_inputs(spec, model).shape == shape


def test_a_detector_takes_a_list_of_images() -> None:
    pytest.importorskip("torchvision")
    (images,) = default_inputs("torchvision:ssdlite320_mobilenet_v3_large", convnet())
    assert [image.shape for image in images] == [(3, 224, 224)]


def test_exported_programs_bring_their_inputs(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(convnet().eval(), (torch.randn(2, 3, 4, 4),)), tmp_path / "m.pt2")
    found = Source(model=str(tmp_path / "m.pt2")).open().study()
    assert [layer.channels for layer in found.layers if layer.prunable] == [8, 6]


def test_the_name_of_the_main_input_is_told() -> None:
    model = convnet()
    model.main_input_name = "input_ids"
    with pytest.raises(UsageError, match="--input 'input_ids=1x16:int64<100'"):
        default_inputs("hf:x", model)


def test_an_onnx_file_has_inputs_of_its_own_unless_it_leaves_sizes_open(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    fixed, free = (write(tmp_path / f"{name}.onnx", nodes, {"x": (FLOAT, [size, 3])}, ["y"]) for name, size in (("a", 2), ("b", "n")))
    (x,) = Source(model=str(fixed), seed=3).open().inputs
    assert x.shape == (2, 3)
    assert torch.equal(x, Source(model=str(fixed), seed=3).open().inputs[0])
    with pytest.raises(UsageError, match=r"leaves sizes open: x: float32\[n, 3\]. Give them, as in --input 1x3:float32"):
        Source(model=str(free)).open()
    assert Source(model=str(free), input=("x=5x3",)).open().inputs[1]["x"].shape == (5, 3)


class Patient:
    """A timer that has already run out."""

    def __init__(self, _: float, function: Callable[[], None]) -> None:
        self.start, self.cancel = function, lambda: None


@pytest.mark.parametrize("terminal", [True, False])
def test_long_work_shows_itself_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "Timer", Patient)
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    with progress.working("Counting sheep"):
        pass
    out, err = capsys.readouterr()
    assert "Counting sheep" in err if terminal else err == ""
    assert out == ""
