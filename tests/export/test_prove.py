"""Proof from the files alone holds for what was saved, and for nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

from export.models import Branching, FusedAttention, Nested, Residual, Tied, compressed, nested_inputs
from secateur.errors import PlanError, ProofError
from secateur.export import load, prove_directory, save_directory

BUILDERS: dict[str, Callable[[], nn.Module]] = {"residual": Residual, "attention": FusedAttention, "tied": Tied, "nested": Nested}


def dense(name: str) -> nn.Module:
    """The model that the saved result was made from, with its weights."""
    torch.manual_seed(1)
    return BUILDERS[name]().eval()


@pytest.mark.parametrize("name", BUILDERS)
def test_what_was_saved_is_proven(saved: dict[str, Path], name: str) -> None:
    proof = prove_directory(saved[name], dense(name))
    assert proof.holds
    assert len(proof.trials) == 2
    assert proof.notes == ()


def test_weights_of_another_training_are_told(saved: dict[str, Path]) -> None:
    other = dense("attention")
    with torch.no_grad():
        other.get_parameter("out.bias").add_(1)
    proof = prove_directory(saved["attention"], other)
    assert proof.holds
    assert [note for note in proof.notes if note.endswith(": out.bias")] == list(proof.notes) != []


def test_without_a_program_the_class_is_proven(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, inputs = Branching().eval(), torch.rand(2, 3)
    path = save_directory(compressed(model, inputs, prefer="module"), tmp_path / "out", onnx=False)
    assert not (path / "model.pt2").exists()
    assert prove_directory(path, model).holds


def test_weights_that_a_parametrization_computes_are_proven_and_told_from_trained_ones(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, last = (parametrizations.weight_norm(nn.Linear(*sizes)) for sizes in ((3, 8), (8, 2)))
    model = nn.Sequential(first, nn.ReLU(), last).eval()
    result = compressed(model, torch.randn(4, 3))
    assert result.kind == "module"
    proof = prove_directory(save_directory(result, tmp_path / "out", onnx=False), model)
    assert proof.holds
    assert proof.notes == ()
    with torch.no_grad():
        result.model.get_parameter("2.parametrizations.weight.original0").mul_(1.1)
    proof = prove_directory(save_directory(result, tmp_path / "other", onnx=False), model)
    assert proof.holds
    assert [note for note in proof.notes if note.endswith(": 2.weight")] == list(proof.notes) != []


@pytest.mark.parametrize("zeros", [False, True])
def test_a_graph_whose_layers_compute_their_weights_is_proven_and_loaded(tmp_path: Path, zeros: bool) -> None:
    """A filter of zeros has no direction: its layer holds a plain weight, also where the freshly built model has another one there."""

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        first, last = (parametrizations.weight_norm(nn.Linear(*sizes)) for sizes in ((3, 8), (8, 2)))
        return nn.Sequential(first, nn.ReLU(), last).eval()

    model, inputs = build(1), torch.randn(4, 3)
    if zeros:
        model[0].parametrizations.weight.original0.data[:7] = 0.0
    result = compressed(model, inputs, prefer="graph")
    assert result.kind == "graph"
    names = set(result.model.state_dict())
    assert ("0.weight" in names) is zeros
    assert "2.parametrizations.weight.original1" in names
    path = save_directory(result, tmp_path / "out", onnx=False)
    assert prove_directory(path, model).holds
    loaded = load(path, into=build(2))
    assert set(loaded.state_dict()) == names
    torch.testing.assert_close(loaded(inputs), result.model(inputs))


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, saved: dict[str, Path]) -> None:
    path = Path(shutil.copytree(saved["attention"], tmp_path / "out"))
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, "qkv.bias": tensors["qkv.bias"] + 1e-3}, path / "model.safetensors")
    with pytest.raises(ProofError, match=r"another qkv.bias"):
        prove_directory(path, dense("attention"))


def test_another_choice_of_channels_is_refused(tmp_path: Path, saved: dict[str, Path]) -> None:
    path = Path(shutil.copytree(saved["residual"], tmp_path / "out"))
    whole = json.loads((path / "plan.json").read_text())
    edit = whole["plan"]["edits"][0]
    edit["remove"] = edit["remove"][1:]
    (path / "plan.json").write_text(json.dumps(whole))
    with pytest.raises(ProofError, match="the plan leaves"):
        prove_directory(path, dense("residual"))


def test_another_computation_is_refused(tmp_path: Path, saved: dict[str, Path]) -> None:
    class Louder(Nested):
        def forward(self, *args: object, **kwargs: object) -> dict[str, object]:
            found = super().forward(*args, **kwargs)
            return {**found, "sums": [1.5 * found["sums"][0]]}

    torch.manual_seed(1)
    louder = compressed(Louder(), nested_inputs())
    path = Path(shutil.copytree(saved["nested"], tmp_path / "out"))
    save_directory(louder, tmp_path / "louder", onnx=False)
    shutil.copy(tmp_path / "louder" / "model.pt2", path / "model.pt2")
    with pytest.raises(ProofError, match="differs from the masked dense model"):
        prove_directory(path, dense("nested"))


def test_another_model_is_refused(saved: dict[str, Path]) -> None:
    with pytest.raises(PlanError, match="another model"):
        prove_directory(saved["residual"], nn.Sequential(nn.Conv2d(3, 4, 1)))
