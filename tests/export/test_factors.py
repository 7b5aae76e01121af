"""Factorized models as files: loaded by shapes, proven again, whatever came before or after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.nn import functional as F

import secateur as sc
from export.models import FusedAttention, Residual, Tied
from secateur.errors import FileError, PlanError, ProofError
from secateur.export import load, prove_directory, proven_directory
from secateur.pipeline import apply
from secateur.plan import Plan
from secateur.result import Result
from secateur.study import Study, study

PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.arange(10).reshape(2, 5) % 7
DATA = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
VECTORS = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
VECTOR_DATA = [torch.randn(64, 16, generator=torch.Generator().manual_seed(1))]


class Bare(nn.Module):
    """A layer of no class of torch's: it multiplies by a weight ``(in, out)`` and knows no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Biased(Bare):
    """The same with a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class Perceptron(nn.Module):
    """Such layers with a bias and without, one of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square, self.last = Bare(16, 16), Biased(16, 16), Biased(16, 12)
        self.again = self.square

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.square(self.first(x).relu()).relu())
        y: Tensor = self.last(x.relu())
        return y


class FusedProjection(nn.Module):
    """Attention of such layers: queries, keys and values of one, in thirds."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = Biased(16, 48), Biased(16, 16), Bare(16, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (4, -1)).transpose(1, 2) for x in self.qkv(tokens).split(16, -1))
        found: Tensor = self.head(self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)) + tokens)
        return found


def factors(found: Study, data: Any = None) -> Plan:
    return found.plan_decomposition(rank=2, accept_dearer=True, data=data)


def after_pruning(found: Study, data: Any = None) -> Plan:
    return factors(found.after(found.plan(ratio=0.5)), data)


def before_pruning(found: Study, data: Any = None) -> Plan:
    return found.after(factors(found, data), data=data).plan(ratio=0.5)


Case = tuple[type[nn.Module], Tensor, Callable[..., Plan], Any, str]
CASES: dict[str, Case] = {
    "factors": (Residual, PIXELS, factors, None, "module"),
    "fitted factors": (Residual, PIXELS, factors, DATA, "module"),
    "pruned, then factors": (Residual, PIXELS, after_pruning, None, "module"),
    "fitted factors, then pruned": (Residual, PIXELS, before_pruning, DATA, "module"),
    "tied": (Tied, NUMBERS, after_pruning, None, "module"),
    "pruned to a graph, then factors": (FusedAttention, TOKENS, after_pruning, None, "graph"),
    "layers of another class, pruned, then factors": (Perceptron, VECTORS, after_pruning, VECTOR_DATA, "module"),
    "layers of another class, pruned to a graph, then factors": (FusedProjection, TOKENS, after_pruning, None, "graph"),
    "layers of another class, factors, then pruned": (Perceptron, VECTORS, before_pruning, None, "module"),
    "factors, then pruned to a graph": (FusedAttention, TOKENS, before_pruning, None, "graph"),
}
cases = pytest.mark.parametrize("name", CASES)


def dense(name: str) -> nn.Module:
    torch.manual_seed(1)
    return CASES[name][0]().eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Result, Path]]:
    where, found = tmp_path_factory.mktemp("factors"), {}
    for name, (_, inputs, plan_of, data, _) in CASES.items():
        studied = study(dense(name), inputs)
        result = apply(studied, plan_of(studied, data), data=data)
        found[name] = result, result.save(where / name.replace(", ", "_").replace(" ", "_"), onnx=False)
    return found


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs) if not hasattr(model, "graph") else model(inputs)


@cases
def test_what_is_loaded_computes_what_was_saved(made: dict[str, tuple[Result, Path]], name: str) -> None:
    (result, path), (build, inputs, *_, kind) = made[name], CASES[name]
    assert result.kind == kind
    again = load(path, into=build().eval())
    assert isinstance(again, fx.GraphModule if kind == "graph" else build)
    torch.testing.assert_close(outputs(again, inputs), outputs(result.model, inputs))
    torch.testing.assert_close(outputs(load(path), inputs), outputs(result.model, inputs))


@cases
def test_what_was_saved_is_proven_again(made: dict[str, tuple[Result, Path]], name: str) -> None:
    path = made[name][1]
    for found in (prove_directory(path, dense(name)), proven_directory(path, dense(name)).proof):
        assert found.holds
        assert len(found.trials) == 2 * len(made[name][0].stages)
        assert bool(found.notes) == (name == "fitted factors, then pruned")


class Mixed(nn.Module):
    """A strided convolution that reflects at borders, a dilated one in groups, a transposed one, a pointwise one and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.groups = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1)
        self.point, self.head = nn.Conv2d(8, 12, 1), nn.Linear(12, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.groups(self.stem(image).relu()).relu()
        found: Tensor = self.head(self.point(self.up(x)).relu().mean((2, 3)))
        return found


KERNELS = ("stem", "groups", "up")
WAYS: dict[str, tuple[tuple[Any, ...], tuple[str, ...], bool]] = {
    "tucker and svd": ((sc.Tucker(), sc.SVD()), (*KERNELS, "point", "head"), False),
    "cp": ((sc.CP(),), KERNELS, False),
    "pruned, then tucker and svd": ((sc.Tucker(), sc.SVD()), (*KERNELS, "point", "head"), True),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_onnx_file_computes_with_factors_what_torch_does(way: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (methods, layers, pruned), model = WAYS[way], Mixed().eval()
    studied = study(model, PIXELS)
    first = studied.after(studied.plan(ratio=0.25)) if pruned else studied
    result = apply(studied, first.plan_decomposition(methods, rank=2, accept_dearer=True))
    assert {each.layer for each in result.factorized} == set(layers)
    session = onnxruntime.InferenceSession(str(result.save(tmp_path / "out") / "model.onnx"), providers=["CPUExecutionProvider"])
    for size in (1, 5):
        image = torch.randn(size, 3, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs(result.model, image), rtol=1e-4, atol=1e-5)


def test_weights_that_were_trained_since_are_named(made: dict[str, tuple[Result, Path]], tmp_path: Path) -> None:
    other = dense("pruned, then factors")
    with torch.no_grad():
        other.get_parameter("stem.weight").add_(0.1)
        other.get_buffer("norm.running_mean").add_(0.1)
    path = made["pruned, then factors"][1]
    with pytest.raises(ProofError, match="is not the dense model's"):
        proven_directory(path, other)
    assert proven_directory(path, other, recovered=True).trained == ("norm.running_mean",)
    assert "norm.running_mean" in prove_directory(path, other).notes[-1]


def test_factors_in_two_files_must_be_the_same(made: dict[str, tuple[Result, Path]], tmp_path: Path) -> None:
    path = Path(shutil.copytree(made["factors"][1], tmp_path / "out"))
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, "head.reduce.weight": tensors["head.reduce.weight"] + 1e-3}, path / "model.safetensors")
    with pytest.raises(ProofError, match=r"another head.reduce.weight"):
        prove_directory(path, dense("factors"))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda whole: whole["plan"]["edits"][0].update(rank=[1, 1]), FileError, "holds stem.reduce in another shape"),
        (lambda whole: whole["plan"]["edits"][0].update(method="qr"), PlanError, "unknown method"),
        (lambda whole: whole["stages"].append(whole["stages"][0]), FileError, "1 stages, and 2 were saved"),
        (lambda whole: whole["stages"][0].update(kind="other"), FileError, "unknown kind"),
    ],
)
def test_a_damaged_description_is_refused(
    made: dict[str, tuple[Result, Path]], tmp_path: Path, change: Callable[[Any], None], error: type[Exception], said: str
) -> None:
    path = Path(shutil.copytree(made["factors"][1], tmp_path / "out"))
    whole = json.loads((path / "plan.json").read_text())
    change(whole)
    (path / "plan.json").write_text(json.dumps(whole))
    with pytest.raises(error, match=said):
        prove_directory(path, dense("factors"))


def test_the_same_plan_and_data_give_the_same_factors(made: dict[str, tuple[Result, Path]]) -> None:
    result = made["fitted factors"][0]
    again = apply(dense("fitted factors"), result.plan, PIXELS, data=DATA)
    torch.testing.assert_close(again.model.state_dict(), result.model.state_dict(), rtol=0, atol=0)
    assert not [note for note in again.notes if "other calibration data" in note]
    other = apply(dense("fitted factors"), result.plan, PIXELS, data=[DATA[0] + 1])
    assert "the factors are fitted to other calibration data than the plan was made with" in other.notes


@pytest.mark.parametrize("fit", ["weights", "inputs", "sequential"])
def test_layers_of_any_class_that_multiply_by_a_matrix_become_plain_factors(fit: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = Perceptron().eval()
    found = study(model, VECTORS)
    data = None if fit == "weights" else VECTOR_DATA
    result = apply(found, found.plan_decomposition(rank=3, fit=fit, data=data), data=data)
    small: Any = result.model
    assert isinstance(small, Perceptron)
    assert {row.layer for row in result.factorized} == {"first", "square", "last"}
    assert {type(part) for part in [*small.first, *small.square, *small.last]} == {nn.Linear}
    assert small.again is small.square
    assert result.proof.error < 1e-9
    assert isinstance(small.first[-1].bias, Tensor) is (data is not None)
    loaded = load(result.save(tmp_path / "out"), Perceptron().eval())
    torch.testing.assert_close(loaded(VECTORS), small(VECTORS), rtol=0, atol=0)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: VECTORS.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), small(VECTORS).detach(), rtol=1e-4, atol=1e-5)


def test_layers_of_any_class_can_be_factorized_and_cut() -> None:
    torch.manual_seed(2)
    found = study(Perceptron().eval(), VECTORS)
    first = found.after(found.plan_decomposition(rank={"square": 6}))
    result = apply(found, first.plan(ratio=0.25))
    assert [row.layer for row in result.factorized] == ["square"]
    assert result.after.macs < apply(found, found.plan_decomposition(rank={"square": 6})).after.macs
    cheaper = sc.compress(found.model, VECTORS, target=sc.Target(macs=0.6), decompose=sc.Cheaper(), data=VECTOR_DATA, latency=False)
    assert cheaper.after.macs <= 0.6 * cheaper.before.macs


def test_projections_of_a_language_model_that_is_written_with_such_layers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=40, n_positions=16, use_cache=False)
    config.bos_token_id = config.eos_token_id = 0
    model = transformers.GPT2LMHeadModel(config).eval()
    numbers = torch.arange(12).reshape(2, 6)
    found = study(model, numbers)
    result = apply(found, found.plan_decomposition(target=sc.Target(macs=0.6)))
    assert {row.name for row in found.decomposable if row.methods} == {
        f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert "shared with transformer.wte.weight" in str(found.decomposable["lm_head"].reason)
    assert len(result.factorized) >= 2
    assert result.proof.error < 1e-9
    assert type(result.model) is type(model)


@pytest.mark.parametrize(
    ("wishes", "kind"),
    [
        ({"ratio": 0.5, "decompose": sc.Decompose(rank=3)}, "graph"),
        ({"ratio": 0.25, "target": sc.Target(macs=0.4), "decompose": sc.Decompose(fit="sequential")}, "graph"),
        ({"target": sc.Target(macs=0.5), "decompose": sc.Cheaper()}, "module"),
    ],
    ids=["ranks", "target", "cheaper"],
)
def test_compressing_prunes_and_factorizes_such_layers_in_one_plan(wishes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = FusedProjection().eval()
    result = sc.compress(model, TOKENS, data=[torch.randn(32, 6, 16)], latency=False, **wishes)
    assert result.kind == kind
    assert result.plan.prunes
    assert "qkv" in {row.layer for row in result.factorized}
    assert result.proof.error < 1e-9
    where = result.save(tmp_path / "out", onnx=False)
    for tokens in (TOKENS, torch.randn(3, 9, 16)):
        torch.testing.assert_close(outputs(load(where, into=FusedProjection().eval()), tokens), outputs(result.model, tokens))
    assert prove_directory(where, model).holds


def test_a_language_model_written_with_such_layers_is_pruned_to_a_graph_and_factorized(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=16, use_cache=False)
    config.bos_token_id = config.eos_token_id = 0
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    found = study(model, torch.arange(12).reshape(2, 6))
    block = "transformer.h.0"
    pruned = found.after(found.plan(ratios={f"{block}.attn.qk": 0.5, f"{block}.attn.v": 0.25, f"{block}.mlp.c_fc": 0.5}))
    rows = {row.name: row for row in pruned.decomposable if row.methods}
    assert rows.keys() == {f"transformer.h.{n}.{name}" for n in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert rows[f"{block}.attn.c_attn"].kind == "LinearMap 32 -> 56"
    layers = [f"{block}.attn.c_attn", f"{block}.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    result = apply(found, pruned.plan_decomposition(rank=dict.fromkeys(layers, 6)))
    assert [row.layer for row in result.factorized] == layers
    assert result.proof.error < 1e-9
    small, dense = result.model.state_dict(), model.state_dict()
    kept = {f"{block}.attn.c_proj.weight": (24, 32), f"{block}.mlp.c_proj.weight": (64, 32), "transformer.h.1.attn.c_attn.weight": (32, 96)}
    assert {name: tuple(small[name].shape) for name in kept} == kept
    assert small.keys() - dense.keys() == {
        f"{layer}.{name}" for layer in layers for name in ("reduce.weight", "expand.weight", "expand.bias")
    }
    where = result.save(tmp_path / "out", onnx=False)
    again, program = load(where, into=transformers.GPT2LMHeadModel(config).eval()), load(where)
    for numbers in (torch.arange(12).reshape(2, 6), torch.arange(27).reshape(3, 9)):
        for other in (again, program):
            torch.testing.assert_close(other(numbers)[0], result.model(numbers)[0])
    assert prove_directory(where, model).holds
