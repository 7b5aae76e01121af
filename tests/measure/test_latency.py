"""Models take turns, conditions are told, and medians follow from a clock of our own."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from secateur.errors import FileError, MissingExtraError, ModelError, UsageError
from secateur.measure import compare_latency, onnx_latency
from secateur.measure.latency import Rounds, summarize

CONDITIONS = {"warmup": 2, "runtime": "torch", "device": "cpu", "threads": 1, "batch": 8, "dtype": "float32"}


class Clock:
    """Time that passes only when a call lets it."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def takes(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds

        return call


def test_models_take_turns():
    clock = Clock()
    warmed, seconds = Rounds(2, 3, 1e9, clock)({"dense": clock.takes("A", 4.0), "compressed": clock.takes("B", 1.0)})
    assert "".join(clock.calls) == "AB" * 5
    assert (warmed, seconds) == (2, {"dense": [4.0] * 3, "compressed": [1.0] * 3})


def test_rounds_end_with_the_budget():
    clock = Clock()
    warmed, seconds = Rounds(100, 100, 20.0, clock)({"only": clock.takes("A", 1.0)})
    assert (warmed, len(seconds["only"])) == (5, 15)


def test_one_round_of_each_is_done_whatever_the_budget():
    clock = Clock()
    warmed, seconds = Rounds(100, 100, 0.0, clock)({"only": clock.takes("A", 9.0)})
    assert (warmed, seconds) == (1, {"only": [9.0]})


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_no_warm_up_or_no_repeats_is_refused(counts):
    with pytest.raises(UsageError, match="1 or more"):
        Rounds(*counts)


def test_summary_by_hand():
    latency = summarize([0.004, 0.001, 0.002, 0.003, 0.010], **CONDITIONS)
    assert (latency.median_ms, latency.lower_ms, latency.upper_ms, latency.fastest_ms) == pytest.approx((3, 2, 4, 1))
    assert latency.spread_ms == pytest.approx(2)
    assert str(latency) == "3 ms (middle half 2 to 4) in 5 calls, torch, cpu, 1 thread, batch 8, float32"
    assert json.loads(json.dumps(latency.to_json()))["repeats"] == 5


def test_conditions_are_told_and_nothing_stays_changed():
    model, threads = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).double().train(), torch.get_num_threads()
    inputs = torch.ones(3, 4, dtype=torch.float64)
    found = compare_latency({"dense": model, "function": torch.exp}, (inputs,), warmup=1, repeats=2, threads=threads + 1)
    for latency in found.values():
        assert (latency.threads, latency.batch, latency.dtype, latency.device) == (threads + 1, 3, "float64", "cpu")
        assert (latency.repeats, latency.warmup, latency.runtime) == (2, 1, f"torch {torch.__version__}")
    assert torch.get_num_threads() == threads
    assert all(module.training for module in model.modules())


def test_models_run_in_evaluation_without_gradients():
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    compare_latency({"only": Watched()}, kwargs={"x": torch.ones(1)}, warmup=1, repeats=1)
    assert set(seen) == {(False, False)}


def test_accelerators_are_waited_for_after_every_call(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    compare_latency({"only": nn.Linear(2, 2, device="meta")}, (torch.ones(1, 2, device="meta"),), warmup=1, repeats=3)
    assert waited == [torch.device("meta")] * 4


def test_a_model_that_does_not_run_is_named():
    with pytest.raises(ModelError, match="'compressed' does not run"):
        compare_latency({"dense": nn.Linear(4, 4), "compressed": nn.Linear(3, 4)}, (torch.ones(1, 4),), warmup=1, repeats=1)


@pytest.fixture
def onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx.helper")
    value = [helper.make_tensor_value_info(name, 1, ["batch", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
    path = tmp_path / "relu.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString())
    return path


def test_onnx_files_are_timed_in_turns(onnx_file):
    found = onnx_latency({"dense": onnx_file, "compressed": onnx_file}, (torch.ones(3, 4),), warmup=1, repeats=4, threads=1)
    for latency in found.values():
        assert (latency.repeats, latency.threads, latency.batch, latency.dtype) == (4, 1, 3, "float32")
        assert latency.runtime.startswith("onnxruntime ")


def test_onnx_sessions_take_the_threads_asked_for(onnx_file, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    made = []
    session = runtime.InferenceSession
    monkeypatch.setattr(runtime, "InferenceSession", lambda path, options, **rest: made.append(options) or session(path, options, **rest))
    assert onnx_latency({"only": onnx_file}, (torch.ones(1, 4),), warmup=1, repeats=1, threads=2)["only"].threads == 2
    assert made[0].intra_op_num_threads == 2


def test_onnx_files_that_cannot_be_timed_are_named(onnx_file, tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(onnx_file.read_bytes()[:20])
    with pytest.raises(FileError, match="cannot open"):
        onnx_latency({"dense": damaged}, (torch.ones(1, 4),))
    with pytest.raises(FileError, match="no ONNX file"):
        onnx_latency({"dense": tmp_path / "missing.onnx"}, (torch.ones(1, 4),))
    with pytest.raises(ModelError, match=r"takes 1 inputs \(x\), but 2"):
        onnx_latency({"dense": onnx_file}, (torch.ones(1, 4), torch.ones(1)))
    with pytest.raises(ModelError, match="does not run"):
        onnx_latency({"dense": onnx_file}, (torch.ones(1, 5),))


def test_without_onnx_runtime_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"secateur\[onnx\]"):
        onnx_latency({})
