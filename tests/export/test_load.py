"""A loaded model gives what the saved one gave: in the user's class, as a graph of layers, from the .pt2 alone, in a new process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from export.models import FusedAttention, Nested, Residual, Stand, Tied
from secateur.errors import FileError, PlanError, UsageError
from secateur.export import load

BUILDERS: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "attention": FusedAttention, "tied": Tied, "nested": Nested}
TESTS = Path(__file__).parent.parent

NEW_PROCESS = """
import sys, torch
from pathlib import Path
folder = Path(sys.argv[1])
expected = torch.load(folder / "expected.pt")
found = torch.export.load(folder / "attention" / "model.pt2").module()(torch.load(folder / "tokens.pt"))
torch.testing.assert_close(found, expected["attention"])
assert "secateur" not in sys.modules
sys.path.append(sys.argv[2])
from export.models import FusedAttention, Nested, Residual, Tied
from secateur.export import load, read_directory
for name, build in {"residual": Residual, "attention": FusedAttention, "tied": Tied, "nested": Nested}.items():
    args, kwargs = read_directory(folder / name).examples()
    torch.testing.assert_close(load(folder / name, into=build().eval())(*args, **kwargs), expected[name])
print("equal")
"""


@pytest.fixture
def results(residual: Stand, attention: Stand, tied: Stand, nested: Stand) -> dict[str, Stand]:
    return {"residual": residual, "attention": attention, "tied": tied, "nested": nested}


@pytest.fixture
def copied(tmp_path: Path, saved: dict[str, Path]) -> Callable[[str], Path]:
    """Copy a saved directory, to be damaged."""
    return lambda name: Path(shutil.copytree(saved[name], tmp_path / name))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_loaded_model_gives_the_same(saved: dict[str, Path], results: dict[str, Stand], name: str) -> None:
    dense = BUILDERS[name]().eval()
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    model = load(saved[name], into=dense)
    assert type(model) is type(dense) or results[name].kind == "graph"
    torch.testing.assert_close(results[name].outputs(model), results[name].outputs(), rtol=0, atol=0)
    torch.testing.assert_close(dict(dense.state_dict()), before, rtol=0, atol=0)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        k: v.shape for k, v in results[name].model.state_dict().items()
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_the_program_alone_gives_the_same(saved: dict[str, Path], results: dict[str, Stand], name: str) -> None:
    torch.testing.assert_close(results[name].outputs(load(saved[name])), results[name].outputs())
    torch.testing.assert_close(results[name].outputs(load(saved[name] / "model.pt2")), results[name].outputs())


@pytest.mark.parametrize("shape", [(1, 6, 16), (2, 6, 16), (5, 9, 16)])
def test_a_graph_takes_other_sizes(saved: dict[str, Path], attention: Stand, shape: tuple[int, ...]) -> None:
    tokens = torch.randn(shape)
    with torch.no_grad():
        expected = attention.model(tokens)
        torch.testing.assert_close(load(saved["attention"], into=FusedAttention().eval())(tokens), expected, rtol=0, atol=0)
        torch.testing.assert_close(load(saved["attention"])(tokens), expected)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 3, 12, 10)])
def test_a_program_takes_other_sizes(saved: dict[str, Path], residual: Stand, shape: tuple[int, ...]) -> None:
    image = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(load(saved["residual"])(image), residual.model(image))


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_a_loaded_model_can_be_trained(saved: dict[str, Path], results: dict[str, Stand], name: str) -> None:
    dense = BUILDERS[name]()
    next(dense.parameters()).requires_grad_(False)
    model = load(saved[name], into=dense)
    assert model.training
    model.zero_grad()
    model(*results[name].args).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == [next(iter(dict(dense.named_parameters())))]


def test_attributes_follow_the_new_sizes(saved: dict[str, Path]) -> None:
    model = load(saved["residual"], into=Residual())
    assert isinstance(model, Residual)
    assert (model.stem.out_channels, model.norm.num_features, model.head.in_features) == (4, 4, 4)


def test_tied_weights_stay_tied(saved: dict[str, Path]) -> None:
    model = load(saved["tied"], into=Tied())
    assert isinstance(model, Tied)
    assert model.head.weight is model.embed.weight


def test_untied_weights_are_tied_again(saved: dict[str, Path]) -> None:
    dense = Tied()
    dense.head.weight = nn.Parameter(torch.randn(7, 8))
    model = load(saved["tied"], into=dense)
    assert isinstance(model, Tied)
    assert model.head.weight is model.embed.weight


def test_a_new_process_gives_the_same(saved: dict[str, Path], results: dict[str, Stand]) -> None:
    folder = saved["tied"].parent
    torch.save({name: result.outputs() for name, result in results.items()}, folder / "expected.pt")
    torch.save(results["attention"].args[0], folder / "tokens.pt")
    done = subprocess.run([sys.executable, "-c", NEW_PROCESS, str(folder), str(TESTS)], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("name", ["tied", "attention"])
def test_another_model_is_refused(saved: dict[str, Path], name: str) -> None:
    with pytest.raises(PlanError, match="another model"):
        load(saved[name], into=nn.Linear(3, 3))


@pytest.mark.parametrize("file", ["model.safetensors", "plan.json", "inputs.safetensors", "model.pt2"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_truncated_files_are_refused(copied: Callable[[str], Path], file: str, share: float) -> None:
    path = copied("attention")
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FileError, match=file):
        load(path, into=None if file == "model.pt2" else FusedAttention())


@pytest.mark.parametrize("file", ["model.safetensors", "plan.json", "inputs.safetensors", "model.pt2"])
def test_missing_files_are_told(copied: Callable[[str], Path], file: str) -> None:
    path = copied("attention")
    (path / file).unlink()
    with pytest.raises(FileError, match=f"no file .*{file}|there is no .*{file}"):
        load(path, into=None if file == "model.pt2" else FusedAttention())


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no directory that Secateur saved"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("up.weight"), "missing: up.weight"),
        (lambda tensors: tensors.update(other=torch.ones(1)), "unknown: other"),
        (lambda tensors: tensors.update({"up.bias": torch.ones(2, 2)}), "up.bias has 2 dimensions"),
    ],
)
def test_weights_that_do_not_fit_are_listed(
    copied: Callable[[str], Path], change: Callable[[dict[str, Tensor]], object], told: str
) -> None:
    path = copied("tied")
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"aliases": json.dumps({"head.weight": "embed.weight"})})
    with pytest.raises(FileError, match=f"model.safetensors does not fit Tied:\n  {told}"):
        load(path, into=Tied())


def test_pickle_is_read_only_when_trusted(tmp_path: Path, residual: Stand) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(FileError, match=r"pickled objects.*trust_pickle"):
        load(tmp_path / "other.pt2")
    assert load(tmp_path / "other.pt2", trust_pickle=True)(torch.ones(1, 2)).shape == (1, 2)
    torch.save(residual.model, tmp_path / "whole.pt")
    with pytest.raises(UsageError, match="pickle"):
        load(tmp_path / "whole.pt")
    assert isinstance(load(tmp_path / "whole.pt", trust_pickle=True), Residual)


def test_into_needs_the_directory(saved: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="directory"):
        load(saved["tied"] / "model.pt2", into=Tied())
