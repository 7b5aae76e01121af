"""The laws of factorizing, over all case models: the result computes what the dense model computes with recomposed weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cases import CASES, Case, call, studied
from secateur.capture import Capture
from secateur.capture.duplicate import duplicate
from secateur.decompose import CP, METHODS, captured_layers, settings_of
from secateur.decompose.linalg import compose
from secateur.decompose.spec import read_spec, to_kernel, to_weight
from secateur.errors import PlanError, ProofError, RewriteError, SelectionError
from secateur.plan import Factorize
from secateur.rewrite import FactorizedLayer, Rewritten, apply, factorize, recompose, rewrite_factorized
from secateur.rewrite.factorize import with_skeletons
from secateur.study import study

PLAIN = {"torch.nn.modules.", "torch.nn.modules.conv"}
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def edits_for(capture: Capture, **settings: Any) -> list[Factorize]:
    """Half of the full rank for every layer that a method applies to, the methods in turn."""
    edits = []
    for number, row in enumerate(captured_layers(capture)):
        if row.fitting:
            method = METHODS[row.fitting[number % len(row.fitting)]]
            method = replace(method, sweeps=20, starts=2) if isinstance(method, CP) else method
            limits = method.limits(read_spec(capture.model.get_submodule(row.name), trust_forward=True))
            rank = tuple(max(1, limit // 2) for limit in limits)
            edits.append(Factorize(row.name, method.name, rank, settings_of(method), **settings))
    return edits


WITH_LAYERS = [case for case in CASES if edits_for(studied(case).capture)]
cases = pytest.mark.parametrize("case", WITH_LAYERS, ids=str)


@cache
def factorized(case: Case, prefer: apply.Prefer = "auto") -> tuple[Rewritten, list[FactorizedLayer]]:
    found = studied(case)
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    done = rewrite_factorized(found.solution, edits_for(found.capture), prefer=prefer)
    torch.testing.assert_close(found.model.state_dict(), before, rtol=0, atol=0)
    return done


def by_hand(dense: nn.Module, small: nn.Module, layers: list[str]) -> nn.Module:
    """The dense model in double precision with the weights that the factors multiply to."""
    model = duplicate(dense).double()
    for name in layers:
        layer: Any = model.get_submodule(name)
        kernels = [to_kernel(part.weight.double(), read_spec(part)) for part in small.get_submodule(name)]
        layer.weight.data = to_weight(compose(kernels), read_spec(layer, trust_forward=True))
    return model


def tensors(outputs: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


def doubled(inputs: Any) -> Any:
    return pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


def test_nearly_all_case_models_have_such_layers() -> None:
    assert len(WITH_LAYERS) > 40


@cases
def test_factors_equal_recomposed_weights(case: Case) -> None:
    done, rows = factorized(case)
    assert rows
    assert done.proof.holds
    assert done.proof.error <= 1e-9
    names = [row.layer for row in rows]
    assert all(
        type(part) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) or "Transpose" in type(part).__name__
        for name in names
        for part in done.model.get_submodule(name)
    )
    inputs = doubled(case.inputs(3))
    with torch.no_grad():
        want, have = (tensors(call(m, inputs)) for m in (by_hand(studied(case).model, done.model, names), duplicate(done.model).double()))
    torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["grouped", "separate_qkv"])
def test_a_graph_holds_factors_too(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    done, _ = factorized(case, "graph")
    assert done.kind == "graph"
    assert done.proof.holds
    again = factorized(case)[0].model
    torch.testing.assert_close(tensors(call(done.model, case.inputs(3))), tensors(call(again, case.inputs(3))), rtol=1e-4, atol=1e-5)


@cases
def test_skeletons_have_the_shapes_and_train_like_the_layer(case: Case) -> None:
    done, _ = factorized(case)
    model = duplicate(studied(case).model)
    with_skeletons(model, edits_for(studied(case).capture))
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in done.model.state_dict().items()}
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {n: p.requires_grad for n, p in done.model.named_parameters()}


class Peeking(nn.Module):
    """A forward that looks at the weight of a layer, which factors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x.to(self.up.weight.dtype))))


def test_a_class_that_reads_weights_of_layers_gives_way_to_a_graph() -> None:
    found = study(Peeking(), torch.randn(2, 8))
    edits = [Factorize("up", "svd", (3,))]
    done, _ = rewrite_factorized(found.solution, edits)
    assert done.kind == "graph"
    assert "has no attribute 'weight'" in done.notes[0]
    with pytest.raises(RewriteError, match="has no attribute 'weight'"):
        rewrite_factorized(found.solution, edits, prefer="module")


def test_fused_kernels_of_torch_that_read_weights_are_met() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    found = study(layer.eval(), torch.randn(2, 5, 16))
    done, _ = rewrite_factorized(found.solution, [Factorize("linear1", "svd", (4,))])
    assert done.kind == "graph"
    assert done.model(torch.randn(3, 5, 16)).shape == (3, 5, 16)


def convnet() -> nn.Sequential:
    torch.manual_seed(5)
    bare = nn.Conv2d(8, 8, 3, bias=False)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), bare, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4)).eval()


@pytest.mark.parametrize("fit", ["inputs", "sequential"])
def test_factors_fitted_to_inputs_are_proven_with_their_biases(fit: Any) -> None:
    found = study(convnet(), PIXELS)
    edits = edits_for(found.capture, fit=fit)
    done, rows = rewrite_factorized(found.solution, edits, lambda: [PIXELS])
    assert done.proof.error <= 1e-9
    assert isinstance(done.model[2][-1].bias, nn.Parameter)
    assert all(row.output_error is not None for row in rows)
    again, _ = rewrite_factorized(found.solution, edits, lambda: [PIXELS])
    torch.testing.assert_close(again.model.state_dict(), done.model.state_dict(), rtol=0, atol=0)


def test_fitting_in_turn_sees_what_the_layers_before_give() -> None:
    found, seen = study(convnet(), PIXELS), {}
    for fit in ("inputs", "sequential"):
        edits = [Factorize(name, "tucker", (2, 2), fit=fit) for name in ("4", "0", "2")]
        seen[fit] = factorize(found.capture, edits, lambda: [PIXELS])
    first, second = (dict(model.named_parameters()) for model, _ in seen.values())
    assert [row.layer for row in seen["sequential"][1]] == ["0", "2", "4"]
    assert torch.equal(first["0.core.weight"], second["0.core.weight"])
    assert not torch.equal(first["2.core.weight"], second["2.core.weight"])
    with torch.no_grad():
        dense = found.model(PIXELS).mean(0)
        misses = {fit: float((model(PIXELS).mean(0) - dense).norm()) for fit, (model, _) in seen.items()}
    assert misses["sequential"] < misses["inputs"]


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (Factorize("7", "svd", (2,)), PlanError, "is no layer"),
        (Factorize("2", "svd", (2,)), PlanError, "svd does not apply"),
        (Factorize("2", "tucker", (9, 2)), PlanError, "outside 1 to"),
        (Factorize("2", "tucker", (2, 2), {"speed": 1}), PlanError, "unknown setting"),
        (Factorize("2", "tucker", (2, 2), fit="inputs"), SelectionError, "give calibration data"),
    ],
)
def test_what_cannot_be_factorized_is_refused(edit: Factorize, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        rewrite_factorized(study(convnet(), PIXELS).solution, [edit])


def test_a_layer_is_factorized_under_one_name_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    model.append(model[0])
    found = study(model, torch.randn(2, 16))
    with pytest.raises(PlanError, match="twice"):
        rewrite_factorized(found.solution, [Factorize("0", "svd", (2,)), Factorize("2", "svd", (2,))])
    done, _ = rewrite_factorized(found.solution, [Factorize("2", "svd", (2,))])
    assert done.proof.holds
    assert done.model[0] is done.model[2]


@pytest.mark.parametrize("where", ["factor", "bias", "outside"])
def test_a_wrong_number_is_found(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> Any:
        model, rows = factorize(*args)
        with torch.no_grad():
            if where == "outside":
                model[6].bias[0] += 1e-3
            elif where == "bias":
                model[4].core.bias = nn.Parameter(torch.full((2,), 1e-3))
            else:
                model[2].reduce.register_forward_hook(lambda _, __, output: output * 1.0001)
        return model, rows

    monkeypatch.setattr(apply, "factorize", wrong)
    found = study(convnet(), PIXELS)
    with pytest.raises((ProofError, RuntimeError)):
        rewrite_factorized(found.solution, [Factorize(name, "tucker", (2, 2)) for name in ("2", "4")], prefer="module")


def test_statistics_that_the_proof_replaces_must_be_the_dense_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> Any:
        model, rows = factorize(*args)
        model[1].running_mean += 1
        return model, rows

    monkeypatch.setattr(apply, "factorize", wrong)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).eval()
    with pytest.raises(ProofError, match=r"1\.running_mean is not the dense model's"):
        rewrite_factorized(study(model, PIXELS).solution, [Factorize("2", "tucker", (2, 2))], prefer="module")


def test_recomposing_from_other_factors_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = recompose.with_recomposed

    def shifted(*args: Any) -> Any:
        model, exact = original(*args)
        return model, {name: value + 1e-6 for name, value in exact.items()}

    monkeypatch.setattr(recompose, "with_recomposed", shifted)
    with pytest.raises(ProofError, match="recomposed weights"):
        rewrite_factorized(study(convnet(), PIXELS).solution, [Factorize("2", "tucker", (2, 2))], prefer="module")
