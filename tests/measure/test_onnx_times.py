"""Times of operators and models in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import MissingExtraError, ModelError
from secateur.measure import LayerTimes, OnnxComparison, OnnxTimer, Operation, Repeats, onnx_times
from secateur.study import study

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

QUICK = Repeats(warmup=1, repeats=2)


class Several(nn.Module):
    """Weights and activations on either side of a product, a shape that is a constant, and an operator that returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).reshape(x.shape[0], 8, 16)
        values, _ = torch.max(self.inner(x) @ x.mT, -1)
        return nn.functional.gelu(values) * self.norm.weight.exp()


def operations(model: nn.Module, *shape: int) -> list[Operation]:
    graph = study(model.eval(), torch.randn(*shape)).capture.graph
    return [found for node in graph.nodes if (found := Operation.of(node)) is not None]


@pytest.fixture(scope="module")
def several() -> list[Operation]:
    return operations(Several(), 2, 3, 4, 4)


def test_every_operator_has_a_time_but_those_of_weights_alone(several: list[Operation]) -> None:
    timer = OnnxTimer(threads=1, repeats=QUICK).prepared(several)
    found = {str(each.target): timer(each) for each in several}
    assert found.pop("aten.exp.default") is None
    assert len(found) > 6
    assert all(time is not None and time > 0 for time in found.values())


def test_operators_are_exported_together(several: list[Operation], monkeypatch: pytest.MonkeyPatch) -> None:
    bundles: list[int] = []
    monkeypatch.setattr(onnx_times, "_exported", lambda some: bundles.append(len(some)) or [None] * len(some))
    first = [each for each in several if "relu" in str(each.target) or "batch_norm" in str(each.target)]
    LayerTimes(OnnxTimer(threads=1, repeats=QUICK), folder=None)(first)
    assert bundles == [2]
    monkeypatch.setattr(onnx_times, "LARGEST", 1)
    LayerTimes(OnnxTimer(threads=1, repeats=QUICK), folder=None)(first)
    assert bundles == [2, 1, 1]


def test_one_that_does_not_export_leaves_the_others_their_times(several: list[Operation], monkeypatch: pytest.MonkeyPatch) -> None:
    own = onnx_times._proto

    def fails(bundle: Any, *rest: Any) -> Any:
        if any("relu" in str(each.target) for each in bundle.operations):
            raise RuntimeError("no such operator")
        return own(bundle, *rest)

    monkeypatch.setattr(onnx_times, "_proto", fails)
    chosen = [each for each in several if any(word in str(each.target) for word in ("relu", "batch_norm", "matmul"))]
    found = LayerTimes(OnnxTimer(threads=1, repeats=QUICK), folder=None)(chosen)
    assert [time is None for time in found] == ["relu" in str(each.target) for each in chosen]


def test_weights_are_inside_of_the_model_and_activations_are_not(several: list[Operation]) -> None:
    import onnx

    chosen = [each for each in several if "conv2d" in str(each.target) or "matmul" in str(each.target)]
    files = [onnx.load_model_from_string(file) for file in onnx_times._exported(chosen) if file is not None]
    assert [len(file.graph.input) for file in files] == [1, 2]
    shapes: Sequence[tuple[int, ...]] = [tuple(tensor.dims) for tensor in files[0].graph.initializer]
    assert (8, 3, 3, 3) in shapes


def test_the_machine_is_named_by_runtime_and_threads() -> None:
    import onnxruntime

    found = OnnxTimer(threads=3).machine
    assert (found.runtime, found.threads) == (f"onnxruntime {onnxruntime.__version__}", 3)


def test_models_are_exported_once_and_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[nn.Module] = []
    own = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda model, *rest, **more: exported.append(model) or own(model, *rest, **more))
    dense, first, second = nn.Linear(4, 8), nn.Linear(4, 4), nn.Linear(4, 2)
    compare = OnnxComparison(threads=1)
    for small in (first, second):
        found = compare({"dense": dense, "compressed": small}, (torch.randn(2, 4),), {}, warmup=1, repeats=2, budget_s=1.0)
        assert found.keys() == {"dense", "compressed"}
        assert found["dense"].runtime.startswith("onnxruntime ")
    assert exported == [dense, first, second]
    folder = compare._folder
    assert len(list(folder.glob("*.onnx"))) == 3
    del compare
    assert not folder.exists()


def test_a_model_that_does_not_export_is_named() -> None:
    class Sorting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigh(x)[0]

    with pytest.raises(ModelError, match="dense model cannot be timed in ONNX Runtime"):
        OnnxComparison()({"dense": Sorting()}, (torch.eye(2),), {})


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, several: list[Operation]) -> None:
    monkeypatch.setattr(onnx_times, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(MissingExtraError, match="onnx"):
        LayerTimes(OnnxTimer(), tmp_path)(several)
