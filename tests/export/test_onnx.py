"""The ONNX file gives what PyTorch gives, at every size that the model takes; one that does not is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

from export.models import Caching, FusedAttention, NamedOutputs, Nested, Residual, Windowed, nested_inputs
from secateur.errors import FileError
from secateur.export import onnx
from secateur.export.canonical import canonicalise
from secateur.export.onnx import PortNames, write_onnx, write_onnx_as_open_as_can_be
from secateur.export.pt2 import export_program, write_program

aten = torch.ops.aten


def run(path: Path, **feeds: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(feeds)
    outputs = session.run(None, {name: np.asarray(x) for name, x in feeds.items()})
    return {value.name: torch.from_numpy(x) for value, x in zip(session.get_outputs(), outputs, strict=True)}


def test_batch_and_image_size_stay_open(tmp_path: Path) -> None:
    model, path = Residual().eval(), tmp_path / "model.onnx"
    assert write_onnx(export_program(model, (torch.randn(1, 3, 8, 8),), {}), path) is None
    for shape in [(1, 3, 8, 8), (3, 3, 12, 10)]:
        image = torch.randn(shape)
        torch.testing.assert_close(run(path, image=image)["output"], model(image).detach(), rtol=1e-4, atol=1e-5)


class Pooled(nn.Module):
    """Pools images of any size to a size that an ONNX file can tell for a known size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4 * 9, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(nn.functional.adaptive_avg_pool2d(self.conv(image), 3).flatten(1))


def test_where_open_image_sizes_come_out_wrong_the_batch_alone_is_open(tmp_path: Path) -> None:
    model, path = Pooled().eval(), tmp_path / "model.onnx"
    exported = export_program(model, (torch.randn(1, 3, 19, 19),), {})
    assert exported.open_dims == {"image": (0, 2, 3)}
    assert write_onnx(exported, path) is not None
    reason, notes = write_onnx_as_open_as_can_be(exported, path)
    assert reason is None
    assert "example's sizes alone" in notes[0]
    image = torch.randn(3, 3, 19, 19)
    (found,) = run(path, image=image).values()
    torch.testing.assert_close(found, model(image).detach(), rtol=1e-4, atol=1e-5)


def test_files_that_can_be_open_stay_so_and_say_nothing(tmp_path: Path) -> None:
    exported = export_program(Residual().eval(), (torch.randn(1, 3, 8, 8),), {})
    assert write_onnx_as_open_as_can_be(exported, tmp_path / "model.onnx") == (None, ())


def test_an_output_may_have_the_name_that_the_exporter_gives_an_inner_value(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    path = tmp_path / "m.onnx"
    assert write_onnx(export_program(model, (torch.randn(2, 3),), {}), path, names=PortNames(("relu",), ("linear",))) is None
    x = torch.randn(2, 3)
    torch.testing.assert_close(run(path, relu=x)["linear"], model(x).detach(), rtol=1e-4, atol=1e-5)


def test_nested_inputs_and_outputs_have_names(tmp_path: Path) -> None:
    """The number among the outputs, which the exporter cannot take, makes the canonical form necessary."""
    model, path = Nested().eval(), tmp_path / "model.onnx"
    args, kwargs = nested_inputs()
    assert write_onnx(export_program(model, args, kwargs), path) is None
    expected = model(*args, **kwargs)
    found = run(path, pair_0=args[0][0], pair_1=args[0][1], options_shift=kwargs["options"]["shift"])
    assert list(found) == ["y_0", "sums_0"]
    torch.testing.assert_close(found["y_0"], expected["y"][0].detach(), rtol=1e-4, atol=1e-5)


def test_inputs_and_outputs_are_called_as_asked(tmp_path: Path) -> None:
    model, path = Residual().eval(), tmp_path / "model.onnx"
    assert write_onnx(export_program(model, (torch.randn(1, 3, 8, 8),), {}), path, names=PortNames(("input.1",), ("8/out",))) is None
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(run(path, **{"input.1": image})["8/out"], model(image).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [Windowed(), FusedAttention()], ids=["five dimensions", "four"])
def test_the_canonical_form_computes_the_same(model: nn.Module) -> None:
    inputs = (torch.randn(2, 3, 4, 8), torch.randn(2, 1, 2, 4, 4)) if isinstance(model, Windowed) else (torch.randn(2, 6, 16),)
    program = export_program(model.eval(), inputs, {}).program
    canonical = program.module(check_guards=False)
    assert isinstance(canonical, fx.GraphModule)
    canonicalise(canonical)
    found = canonical(*inputs)
    torch.testing.assert_close(found, model(*inputs))
    assert not [node for node in canonical.graph.nodes if node.target is aten.view.default]
    ranks: list[int] = []

    class Ranks(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.target is aten.scaled_dot_product_attention.default:
                ranks.append(value.dim())
            return value

    torch.testing.assert_close(Ranks(canonical).run(*inputs), found)
    assert ranks == [4]


def test_the_canonical_form_goes_in_where_the_plain_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = Windowed().eval(), (torch.randn(2, 3, 4, 8), torch.randn(2, 1, 2, 4, 4))
    exported, convert, tries = export_program(model, inputs, {}), onnx._convert, []

    def failing_first(*args: object) -> None:
        tries.append(args)
        if len(tries) == 1:
            raise RuntimeError("no such operator")
        convert(*args)

    monkeypatch.setattr(onnx, "_convert", failing_first)
    assert write_onnx(exported, tmp_path / "model.onnx") is None
    found = run(tmp_path / "model.onnx", tokens=inputs[0], mask=inputs[1])
    torch.testing.assert_close(found["output"], model(*inputs).detach(), rtol=1e-4, atol=1e-5)
    assert len(tries) == 2


def test_a_file_that_disagrees_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported, other = (export_program(nn.Linear(2, 2), (torch.randn(3, 2),), {}) for _ in range(2))
    assert write_onnx(other, tmp_path / "model.onnx") is None
    content = (tmp_path / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx, "_convert", lambda _program, path, _case: path.write_bytes(content))
    reason = write_onnx(exported, tmp_path / "model.onnx")
    assert reason is not None
    assert reason.count("output differs from PyTorch's by more than 1e-04 of its scale") == 2
    assert list(tmp_path.iterdir()) == []


class Canceling(nn.Module):
    """Adds a large number and takes it away again: what is left is rounded coarsely."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 3e4) - 3e4


def test_what_rounding_changes_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = export_program(Canceling(), (torch.randn(4, 3),), {})
    given = []

    def runtime(path: Path) -> Callable[[dict[str, Tensor]], list[Tensor]]:
        def run(feeds: dict[str, Tensor]) -> list[Tensor]:
            (x,) = feeds.values()
            given.append(x)
            return [x * factor]

        return run

    monkeypatch.setattr(onnx, "Session", runtime)
    factor = 1.0
    assert write_onnx(exported, tmp_path / "model.onnx") is None
    factor = 1.1
    assert "differs from PyTorch's" in str(write_onnx(exported, tmp_path / "model.onnx"))
    assert given


def test_the_reason_is_that_of_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        try:
            raise NotImplementedError("no operator for this")
        except NotImplementedError as error:
            raise RuntimeError("pages of advice") from error

    monkeypatch.setattr(onnx, "_convert", failing)
    reason = write_onnx(export_program(nn.Linear(2, 2), (torch.randn(3, 2),), {}), tmp_path / "model.onnx")
    assert reason == "the ONNX exporter: no operator for this; the ONNX exporter, given canonical calls: no operator for this"


def test_a_full_disk_is_no_reason_to_leave_the_file_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(onnx, "_convert", full)
    with pytest.raises(FileError, match=r"Cannot write model.onnx: No space left"):
        write_onnx(export_program(nn.Linear(2, 2), (torch.randn(3, 2),), {}), tmp_path / "model.onnx")


def test_named_tuples_become_tuples_in_the_files_and_name_the_outputs_of_onnx(tmp_path: Path) -> None:
    model, x = NamedOutputs().eval(), torch.randn(2, 3)
    exported = export_program(model, (x,), {})
    path = tmp_path / "model.pt2"
    assert write_program(exported.program, path) is None
    found, wanted = torch.export.load(path).module()(x), model(x)
    assert type(found) is tuple
    torch.testing.assert_close(found, (wanted.up, {"inner": tuple(wanted.more["inner"])}))
    assert [note.split()[5] for note in exported.notes] == ["Named", "Pair"]
    assert exported.outputs == ("up", "more_inner_first", "more_inner_second")
    assert write_onnx(exported, tmp_path / "model.onnx") is None


def test_objects_unknown_to_torch_export_are_opened() -> None:
    model, x = Caching().eval(), torch.randn(2, 3)
    exported = export_program(model, (x,), {})
    found = exported.program.module()(x)
    torch.testing.assert_close(found["cache"], (x * 2,))
    assert "up.weight" in exported.program.state_dict
    assert list(exported.open_dims) == ["x"]
    assert "returns the tensors of Cache in a tuple" in exported.notes[0]
