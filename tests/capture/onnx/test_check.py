"""Whether a file is read as ONNX Runtime reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor

from capture.onnx.files import FLOAT, INT64, write
from secateur.capture.onnx import compare, load_onnx
from secateur.capture.onnx.registry import _OPERATORS, Call
from secateur.errors import CaptureError


@pytest.mark.parametrize(
    ("found", "same"),
    [([1.0, -2.0 + 1e-4], True), ([1.0, -2.0 + 3e-4], False), ([1.0, float("nan")], False), ([1.0], False)],
)
def test_outputs_agree_relative_to_their_scale(found: list[float], same: bool) -> None:
    expected = torch.tensor([1.0, -2.0])
    if same:
        compare("y", torch.tensor(found), expected)
    else:
        with pytest.raises(CaptureError, match="y"):
            compare("y", torch.tensor(found), expected)


def test_whole_numbers_must_be_equal() -> None:
    compare("y", torch.tensor([1, 2]), torch.tensor([1, 2]))
    with pytest.raises(CaptureError, match="y"):
        compare("y", torch.tensor([1, 3]), torch.tensor([1, 2]))


def test_tiny_outputs_may_differ_by_what_the_runtime_approximates() -> None:
    compare("y", torch.tensor([1e-6, 5e-7]), torch.tensor([1.5e-6, 5e-7]))
    with pytest.raises(CaptureError, match="differs"):
        compare("y", torch.tensor([1e-5]), torch.tensor([1.5e-5]))


def test_an_operator_that_is_read_wrongly_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [2, 3])}, ["y"])
    load_onnx(path)
    monkeypatch.setitem(_OPERATORS, "Relu", lambda call: torch.sigmoid(call.tensor(0)))
    with pytest.raises(CaptureError, match="was not read as ONNX Runtime reads it: ONNX Runtime's y differs"):
        load_onnx(path)


def test_a_failure_while_running_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [2, 3])}, ["y"])

    def failing(call: Call) -> Tensor:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(_OPERATORS, "Relu", failing)
    with pytest.raises(CaptureError, match="runs in ONNX Runtime, but not as read here: RuntimeError: no such thing"):
        load_onnx(path)


def test_open_sizes_are_found_by_trying(tmp_path: Path) -> None:
    """A size that is a number of samples is one wherever its name stands."""
    nodes = [helper.make_node("MatMul", ["weights", "x"], ["z"]), helper.make_node("Reshape", ["z", "wanted"], ["y"])]
    ports = {"x": (FLOAT, ["n", "t"]), "weights": (FLOAT, [5, "n"])}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, ports, ["y"], {"wanted": np.array([5, 32])}))
    assert model(torch.ones(3, 32), torch.ones(5, 3)).shape == (5, 32)


def test_tables_bound_the_numbers_that_choose_from_them(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["whole"], to=INT64),
        helper.make_node("Gather", ["small", "whole"], ["a"]),
        helper.make_node("Gather", ["large", "ids"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    tables = {"small": np.ones((3, 2), np.float32), "large": np.ones((5, 2), np.float32)}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"ids": (INT64, [50])}, ["y"], tables))
    assert model.bounds == {"ids": 3}
    assert set(model.examples()[0].tolist()) == {0, 1, 2}


def test_inputs_that_the_file_does_not_take(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "wanted"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", "m"])}, ["y"], {"wanted": np.array([7, 11])})
    with pytest.raises(CaptureError, match=r"any inputs that were tried \(x: float32\[n, m\]\).*Give inputs that it takes"):
        load_onnx(path)
    assert load_onnx(path, inputs=torch.ones(77, 1))(torch.ones(7, 11)).shape == (7, 11)
    with pytest.raises(CaptureError, match="on the given inputs"):
        load_onnx(path, inputs=torch.ones(3, 3))
