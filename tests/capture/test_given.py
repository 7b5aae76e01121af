"""Capturing whatever a person brings, and saying what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

import secateur.capture
from capture.models import Branching, ConvNet, Tied
from secateur.capture import capture, normalise_inputs
from secateur.errors import CaptureError, ModelError

IMAGE = torch.randn(2, 3, 4, 4)


def test_the_public_names_exist() -> None:
    assert all(hasattr(secateur.capture, name) for name in secateur.capture.__all__)


def test_recording_goes_first_with_open_sizes_for_graphs() -> None:
    assert not capture(ConvNet(), (IMAGE,)).dynamic
    opened = capture(ConvNet(), (IMAGE,), graph=True)
    assert (opened.how, opened.dynamic) == ("record", True)


def test_the_other_way_follows_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    found = capture(Branching(), (torch.ones(2, 3),), graph=True)
    assert found.how == "record"
    assert found.notes[0] == "no input size can be left open"
    assert "torch.export cannot capture the model" in found.notes[1]

    def cannot(*_: object) -> None:
        raise CaptureError("not today")

    monkeypatch.setitem(capture.__globals__, "record", cannot)
    exported = capture(ConvNet(), (IMAGE,))
    assert exported.how == "export"
    assert exported.notes[0] == "not today"


def test_graph_modules() -> None:
    found = capture(fx.symbolic_trace(ConvNet()), (IMAGE,))
    assert "features.0.weight" in found.tied
    torch.testing.assert_close(found.program(IMAGE)[0], found.model.eval()(IMAGE))


@pytest.mark.parametrize("dynamic", [None, {"image": {0: torch.export.Dim.AUTO}}])
def test_exported_programs(dynamic: object, tmp_path: Path) -> None:
    model = ConvNet().eval()
    torch.export.save(torch.export.export(model, (), {"image": IMAGE}, dynamic_shapes=dynamic), tmp_path / "m.pt2")
    found = capture(torch.export.load(tmp_path / "m.pt2"))
    assert (found.how, found.dynamic) == ("given", dynamic is not None)
    assert {node.target for node in found.graph.find_nodes(op="get_attr")} >= {"features.0.weight", "head.bias"}
    assert [n.meta["module"] for n in found.graph.nodes if n.op == "call_function"][:2] == ["features.0", "features.1"]
    torch.testing.assert_close(found.program(IMAGE)[0], model(IMAGE))
    if dynamic:
        torch.testing.assert_close(found.program(IMAGE[:1].repeat(5, 1, 1, 1))[0], model(IMAGE[:1].repeat(5, 1, 1, 1)))


def test_exported_programs_keep_ties_constants_and_argument_order() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, *, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return a - b * c + torch.tensor([1.0, 2.0])

    a, b, c = torch.randn(3, 2).unbind()
    program = torch.export.export(Two(), (a,), {"b": b, "c": c})
    found = capture(program, (a,), {"c": c, "b": b})
    torch.testing.assert_close(found.program(*found.flat_inputs())[0], Two()(a, b=b, c=c))
    assert "_constant_0" in found.tied
    tied = capture(torch.export.export(Tied(), (torch.tensor([[1, 2]]),)))
    assert len(tied.graph.find_nodes(op="get_attr")) == 1
    with pytest.raises(ModelError, match="takes inputs nested as"):
        capture(program, (a,), {"b": b})


def test_functionalised_programs_lose_their_buffer_outputs() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x * self.count

    program = torch.export.export(Stateful(), (torch.ones(2),)).run_decompositions({})
    assert len(program.graph_signature.output_specs) == 2
    found = capture(program)
    for _ in range(2):
        torch.testing.assert_close(found.program(torch.full((2,), 3.0)), (torch.full((2,), 3.0),))


@pytest.mark.parametrize("graph", [False, True])
def test_a_model_that_does_not_run(graph: bool) -> None:
    message = r"ConvNet does not run on the example inputs \(float32\[2, 5\]\): .*[Ee]xpected"
    with pytest.raises(ModelError, match=message):
        capture(ConvNet(), (torch.ones(2, 5),), graph=graph)


def test_models_that_cannot_be_captured_at_all() -> None:
    class Hopeless(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = super().forward(x)
            hidden.detach().numpy()[:] = 0
            return hidden

    with pytest.raises(CaptureError, match=r"(?s)No way of capturing.*but the model returned.*torch.export with fixed sizes"):
        capture(Hopeless(2, 2), (torch.ones(1, 2),))


def test_models_that_are_none() -> None:
    poisoned = ConvNet()
    with torch.no_grad():
        poisoned.head.weight[0, 0] = float("nan")
    wrong = {"a dict": {}, "has no shape yet": nn.LazyLinear(3), "meta device": nn.Linear(2, 2, device="meta"), "'head.weight'": poisoned}
    for message, model in wrong.items():
        with pytest.raises(ModelError, match=message):
            capture(model, (torch.ones(1, 2),))


def test_inputs_in_all_forms() -> None:
    x = torch.ones(1)
    assert normalise_inputs(x) == ((x,), {})
    assert normalise_inputs([x, 2]) == ((x, 2), {})
    assert normalise_inputs({"a": x}) == ((), {"a": x})
    assert normalise_inputs(((x,), {"a": 1})) == ((x,), {"a": 1})
    assert normalise_inputs((x, {"a": 1})) == ((x, {"a": 1}), {})
    for wrong in (3, {1: x}, ((x,), {1: x})):
        with pytest.raises(ModelError):
            normalise_inputs(wrong)
