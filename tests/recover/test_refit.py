"""Refitting what reads the channels that are left."""

from __future__ import annotations

import copy
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cases import CASES, Case, call, studied, vary
from secateur.errors import SelectionError
from secateur.pipeline import apply
from secateur.plan import Plan
from secateur.recover import Merge, Recovered, Refit
from secateur.recover.paired import Steps, bytes_at, dense_bytes, small_bytes
from secateur.recover.pairs import pairs_of
from secateur.recover.readers import readers
from secateur.recover.regression import Sums
from secateur.recover.stages import stages_of
from secateur.result import Result
from secateur.rewrite.graph import rewrite_graph
from secateur.study import Study, study

NAMES = ("residual", "grouped", "separable", "channel_shuffle", "weight_norm", "flatten", "fused_qkv", "library_attention", "mixer")
SOME = [case for case in CASES if case.name in (*NAMES, "reused", "decoder_1d", "language_model")]


def cut(model: nn.Module, inputs: Any, **wishes: Any) -> tuple[Study, Plan, Result]:
    found = study(model.eval(), inputs)
    plan = found.plan(**wishes)
    return found, plan, apply(found, plan)


def refitted(found: Study, plan: Plan, result: Result, data: Any, how: Refit | None = None) -> Recovered:
    return (how or Refit())(result.model, found.cut(plan), data)


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(3))


def dependent(**first: Any) -> nn.Sequential:
    """Eight channels that are mixtures of two, so that any two can stand for all (any three where there is a bias)."""
    return nn.Sequential(nn.Conv2d(2, 8, 1, **first), nn.Conv2d(8, 5, 3)).double()


@pytest.mark.parametrize("case", SOME, ids=str)
def test_no_shape_changes_and_no_layer_fits_worse(case: Case) -> None:
    found = studied(case)
    plan = found.plan(ratio=0.4)
    result = apply(found, plan)
    shapes = {name: tensor.shape for name, tensor in result.model.state_dict().items()}
    torch.manual_seed(5)
    batches = [case.example(2) for _ in range(8)]
    changed = refitted(found, plan, result, [b if isinstance(b, tuple | dict) else (b,) for b in batches])
    assert changed.changes
    assert {name: tensor.shape for name, tensor in result.model.state_dict().items()} == shapes
    assert all(change.after <= change.before * (1 + 1e-6) + 1e-9 for change in changed.changes.values())
    with torch.no_grad():
        assert all(torch.isfinite(t).all() for t in [call(result.model, batches[0])] if isinstance(t, Tensor))


@pytest.mark.parametrize("patch_limit", [2304, 1], ids=["patches", "channels"])
@pytest.mark.parametrize("first", [{"bias": False}, {"padding": 1, "bias": False}, {}], ids=["linear", "padded", "affine"])
def test_dependent_channels_are_made_up_for_exactly(patch_limit: int, first: dict[str, Any]) -> None:
    x = images().double()
    found, plan, result = cut(dependent(**first), x[:8], ratio=0.5)
    before = (result.model(x) - found.model(x)).abs().max()
    refitted(found, plan, result, x, Refit(ridge=0, patch_limit=patch_limit))
    assert before > 0.1
    torch.testing.assert_close(result.model(x), found.model(x))


def test_values_that_the_model_has_by_now_are_fitted_to() -> None:
    x = images().double()
    found, plan, result = cut(dependent(), x[:8], ratio=0.5)
    with torch.no_grad():
        result.model[0].weight *= 3
    refitted(found, plan, result, x, Refit(ridge=0))
    torch.testing.assert_close(result.model(x), found.model(x))


def test_nothing_is_fitted_where_nothing_was_cut() -> None:
    found, plan, result = cut(dependent(), images()[:8].double(), ratios={})
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    assert not refitted(found, plan, result, images().double()).changes
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.model.state_dict().items())


def test_a_batch_norm_takes_the_shift_where_there_is_no_bias() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    x = images()
    found, plan, result = cut(model, x[:8], ratios={"0": 0.5})
    refitted(found, plan, result, x, Refit(ridge=math.inf, scope="readers"))
    torch.testing.assert_close(result.model[:4](x).mean((0, 2, 3)), found.model[:4](x).mean((0, 2, 3)))
    assert torch.equal(result.model[2].weight, model[2].weight[:, [i for i in range(8) if i not in plan.prunes[0].remove]])


def test_without_bias_and_batch_norm_nothing_is_shifted() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    x = torch.randn(64, 3)
    found, plan, result = cut(model, x[:8], ratio=0.5)
    change = refitted(found, plan, result, x).changes["2"]
    assert result.model[2].bias is None
    assert change.after < change.before


def test_layers_are_fitted_on_what_earlier_fits_give() -> None:
    """A fit of the last layer alone leaves more of the error than a fit of both."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(256, 3, dtype=torch.float64)
    found, plan, result = cut(model, x[:64], ratio=0.5)
    changes = refitted(found, plan, result, x, Refit(ridge=0)).changes
    errors = (result.model(x) - found.model(x)).square().mean(0).sum() / found.model(x).var(0, correction=0).sum()
    assert list(changes) == ["2", "4"]
    assert errors.item() == pytest.approx(changes["4"].after)


def test_running_the_data_for_each_layer_gives_what_holding_gives() -> None:
    case = next(c for c in CASES if c.name == "residual")
    found = studied(case)
    plan = found.plan(ratio=0.4)
    states = []
    for how in (Refit(), Refit(memory_gib=0, passes=99)):
        result = apply(found, plan)
        torch.manual_seed(5)
        refitted(found, plan, result, [(case.example(2),) for _ in range(4)], how)
        states.append(result.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_waits_between_two_fits_is_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 5))
    graph = study(model.eval(), torch.randn(7, 3)).capture.graph
    first, last = (n for n in graph.nodes if "linear" in str(n.target))
    assert bytes_at(graph, dense_bytes, [first, last]) == {first: (7 * 3 * 4, 7 * 16 * 4), last: (7 * 16 * 4, 7 * 5 * 4)}


def test_what_is_left_waits_in_less_memory() -> None:
    found, plan, _ = cut(nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 5)), torch.randn(7, 3), ratios={"0": 0.25})
    relu = next(n for n in found.capture.graph.nodes if "relu" in str(n.target))
    assert (dense_bytes(relu), small_bytes(relu, found.cut(plan))) == (7 * 16 * 4, 7 * 12 * 4)


@pytest.mark.parametrize(("memory_gib", "runs"), [(2.0, 1), (0.0, 2)])
def test_data_are_run_again_where_memory_does_not_hold_what_waits(memory_gib: float, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run, own = [], Steps.run_node
    monkeypatch.setattr(Steps, "run_node", lambda self, node: run.append(node) or own(self, node))
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(8, 3)
    found, plan, result = cut(model, x, ratio=0.5)
    refitted(found, plan, result, x, Refit(memory_gib=memory_gib))
    assert run.count(next(n for n in found.capture.graph.nodes if n.op == "call_function")) == runs


def test_samples_stop_where_memory_holds_them_and_go_on_from_there() -> None:
    """Activations of the first two layers are four times as wide as the others."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in ((3, 64), (64, 64), (64, 8), (8, 8), (8, 2))))
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    found, plan, result = cut(model, x[:8], ratio=0.5)
    pairs, _ = pairs_of(found.cut(plan), rewrite_graph(found.cut(plan)), "all", 2304, {})
    stages = stages_of(pairs, found.cut(plan), 4, 4 * 8 * 4 * 50, 99)
    assert [(stage.held, stage.pairs[0].layer) for stage in stages] == [(False, "1.0"), (False, "2.0"), (True, "3.0"), (True, "4.0")]
    assert [len(stage.pairs) for stage in stages_of(pairs, found.cut(plan), 4, 4 * 8 * 4 * 50, 1)] == [2, 1, 1]
    states = []
    for memory in (1.0, 4 * 8 * 4 * 50 / (1 << 30)):
        result = apply(found, plan)
        refitted(found, plan, result, x, Refit(memory_gib=memory, passes=99))
        states.append(result.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Held(TorchDispatchMode):
    """Follows how many bytes the results of all operators take up, and how many they took up at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = call(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for storage in {x.untyped_storage() for x in tree_leaves(made) if isinstance(x, Tensor)}:
            if id(storage) not in given:
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return made

    def _change(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("patch_limit", [2304, 1], ids=["patches", "channels"])
def test_more_samples_take_no_more_memory(patch_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.recover.regression.WAITING", 1 << 12)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3))
    found, plan, result = cut(model, torch.randn(2, 3, 24, 24), ratio=0.5)
    peaks = []
    for count in (4, 32):
        data = [torch.randn(2, 3, 24, 24) for _ in range(count)]
        with Held() as held:
            refitted(found, plan, copy.deepcopy(result), data, Refit(memory_gib=0.0, samples=None, patch_limit=patch_limit))
        peaks.append(held.peak)
    assert peaks[1] - peaks[0] < 28 * 2 * 3 * 24 * 24 * 4, "more than the additional samples themselves take"


def test_a_fork_leaves_a_run_where_it_is() -> None:
    program = study(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3)).capture.program
    first, last = (n for n in program.graph.nodes if "linear" in str(n.target))
    run = Steps(program, [torch.randn(2, 3)])
    fork = run.fork()
    fork.until(last)
    assert not run.env
    run.until(first)
    assert torch.equal(fork.step(), _last(run, last))


def _last(run: Steps, last: Any) -> Tensor:
    run.until(last)
    return run.step()


def test_fewer_passes_than_layers_still_help() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(256, 3)
    found, plan, result = cut(model, x[:64], ratio=0.5)
    before = (result.model(x) - found.model(x)).square().mean()
    refitted(found, plan, result, x, Refit(memory_gib=0, passes=1))
    assert (result.model(x) - found.model(x)).square().mean() < before / 2


class Sum(nn.Module):
    """Two branches: the second, which loses nothing, can make up for the first."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 4, bias=False))
        self.second = nn.Sequential(nn.Linear(6, 4), behind)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


@pytest.mark.parametrize("behind", [nn.Identity(), vary(nn.BatchNorm1d(4))], ids=["at once", "behind a batch norm"])
def test_the_error_of_the_other_summand_is_made_good(behind: nn.Module) -> None:
    x = torch.randn(64, 6, dtype=torch.float64)
    found, plan, result = cut(Sum(behind).double(), x[:8], ratio=0.5)
    refitted(found, plan, result, x, Refit(ridge=0))
    torch.testing.assert_close(result.model(x), found.model(x))


def test_tied_weights_and_transposed_convolutions_are_left_with_a_reason() -> None:
    for name, weight, why in (("reused", "shared.weight", "used 2 times"), ("decoder_2d", "up.weight", "not fitted")):
        case = next(c for c in CASES if c.name == name)
        found = studied(case)
        plan = found.plan(ratio=0.4)
        recovered = refitted(found, plan, apply(found, plan), [(case.inputs(),)])
        assert why in recovered.skipped[weight]
        assert weight in recovered.notes[0]


@pytest.mark.parametrize("how", [Refit(), Merge()])
def test_weights_behind_a_parametrization_are_recovered_as_plain_ones(how: Refit | Merge) -> None:
    plain = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    other = copy.deepcopy(plain)
    for place in (2, 4):
        parametrizations.weight_norm(other[place])
    data, outputs = torch.randn(64, 5), []
    for model in (plain, other):
        found, plan, result = cut(model, data[:2], ratio=0.5)
        assert result.kind == "module"
        before = result.model(data)
        how(result.model, found.cut(plan), data)
        outputs.append(result.model(data))
        assert not torch.allclose(outputs[-1], before, rtol=1e-2)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_an_infinite_ridge_folds_the_means_of_the_data_into_biases() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    found, plan, result = cut(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), x, ratio=0.5)
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    refitted(found, plan, result, x, Refit(ridge=math.inf))
    after = result.model.state_dict()
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == ["2.bias"]
    torch.testing.assert_close(result.model(x).mean(0), found.model(x).mean(0))


class Written(nn.Module):
    """A linear layer written as a product with the transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).relu() @ self.weight.T


def test_a_product_with_a_transposed_weight_is_fitted() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    found, plan, result = cut(Written(), x, ratio=0.5)
    change = refitted(found, plan, result, x).changes["weight"]
    assert change.before is not None
    assert change.after is not None
    assert change.after < change.before
    error = ((found.model(x) - result.model(x)).square().sum() / found.model(x).square().sum()).detach()
    torch.testing.assert_close(float(error), change.after, atol=1e-4, rtol=1e-3)


def test_it_asks_for_data() -> None:
    found, plan, result = cut(dependent(), images()[:8].double(), ratio=0.5)
    with pytest.raises(SelectionError, match="needs calibration data"):
        refitted(found, plan, result, None)
    with pytest.raises(SelectionError, match="hold no samples"):
        refitted(found, plan, result, iter([]))


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2, bias=False),
    nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False),
    nn.Conv1d(4, 6, 4, padding="same", bias=False),
    nn.Conv3d(4, 2, 2, bias=False),
    nn.Linear(4, 3, bias=False),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_rows_times_matrix_are_the_outputs(layer: nn.Module) -> None:
    rank = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    x = torch.randn(3, 4, *([7] * rank))
    graph = study(layer.eval(), x).capture.graph
    reader = readers(graph)[0]["weight"]
    for inputs, (outputs,) in reader.rows(x, [layer(x)]):
        torch.testing.assert_close(inputs @ reader.matrix(layer.weight).mT, outputs)
    assert torch.equal(reader.stored(reader.matrix(layer.weight), layer.weight), layer.weight)


@pytest.mark.parametrize("layer", CONVOLUTIONS[:-1], ids=str)
def test_drawn_rows_are_some_of_all_and_the_same_each_time(layer: nn.Module) -> None:
    x = torch.randn(3, 4, *([7] * len(layer.kernel_size)))
    reader = readers(study(layer.eval(), x).capture.graph)[0]["weight"]
    ((every, _),) = reader.rows(x, [layer(x)])
    ((some, (outputs,)),) = reader.rows(x, [layer(x)], 5)
    assert some.shape[:2] == (every.shape[0], 3 * 5)
    torch.testing.assert_close(some @ reader.matrix(layer.weight).mT, outputs)
    assert all(bool((row == group).all(1).any()) for rows, group in zip(some, every, strict=True) for row in rows)
    assert len(some[0].unique(dim=0)) == 3 * 5
    assert torch.equal(next(reader.rows(x, [layer(x)], 5))[0], some)
    assert torch.equal(next(reader.rows(x, [layer(x)], 10**6))[0], every)


def test_positions_are_left_out_where_there_are_more_than_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plan, _ = cut(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)), torch.randn(1, 3, 20, 20), ratio=0.5)
    x = torch.randn(8, 3, 20, 20)

    def counted(refit: Refit) -> int:
        seen: list[int] = []

        def add(self: Sums, x: Tensor, y: Tensor) -> None:
            seen.append(x.shape[1])
            own(self, x, y)

        own = Sums.add
        with monkeypatch.context() as patched:
            patched.setattr(Sums, "add", add)
            refitted(found, plan, apply(found, plan), x, refit)
        return sum(seen)

    assert counted(Refit()) == 8 * 16 * 16
    monkeypatch.setattr("secateur.recover.pairs.FEWEST", 100)
    assert counted(Refit()) == 8 * 16 * 16  # 32 rows for each of 8 x 9 inputs are more than there are
    assert counted(Refit(evidence=4)) == 8 * 36  # 4 rows for each of 72 inputs
    assert counted(Refit(evidence=None)) == 8 * 16 * 16
    assert counted(Refit(evidence=4, patch_limit=1)) == 8 * 13  # 4 rows for each of 8 inputs are fewer than 100


def test_tokens_are_left_out_where_there_are_more_than_enough() -> None:
    layer = nn.Linear(4, 6, bias=False)
    x = torch.randn(3, 7, 5, 4)
    reader = readers(study(layer.eval(), x).capture.graph)[0]["weight"]
    ((some, (outputs,)),) = reader.rows(x, [layer(x)], 10)
    assert some.shape == (1, 3 * 10, 4)
    assert len(some[0].unique(dim=0)) == 30
    torch.testing.assert_close(some @ layer.weight.T, outputs)
    assert torch.equal(next(reader.rows(x, [layer(x)], 10))[0], some)
    assert not torch.equal(next(reader.rows(x, [layer(x)], 10, seed=1))[0], some)
    assert next(reader.rows(x[:, 0, 0], [layer(x[:, 0, 0])], 1))[0].shape == (1, 3, 4)
