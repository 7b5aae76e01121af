"""What a result keeps of the user's model, and that the model itself is never touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cases import CASES
from networks.transforms import Conditional
from secateur.errors import ProofError, SecateurError
from secateur.rewrite import Rewritten, apply, module, rewrite
from secateur.rewrite.apply import Prefer
from secateur.study import study

BY_NAME = {case.name: case for case in CASES}
outcomes = pytest.mark.parametrize("prefer", ["module", "graph"])


def halved(model: nn.Module, inputs: Any, prefer: Prefer = "auto") -> Rewritten:
    found = study(model, inputs)
    return rewrite(found.cut(found.plan(ratio=0.5)), prefer=prefer)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a user could notice to have changed."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {
        "identity": {n: id(t) for n, t in tensors.items()},
        "bytes": {n: t.detach().clone().contiguous().view(torch.uint8).flatten().tolist() for n, t in tensors.items() if t.ndim},
        "versions": {n: t._version for n, t in tensors.items()},
        "gradients": {n: (t.requires_grad, t.grad is None) for n, t in tensors.items()},
        "training": {n: m.training for n, m in model.named_modules()},
        "plain": {n: {k: v for k, v in vars(m).items() if isinstance(v, int | float | str | tuple)} for n, m in model.named_modules()},
        "hooks": {n: [len(v) for k, v in vars(m).items() if "hooks" in k and hasattr(v, "__len__")] for n, m in model.named_modules()},
    }


def mixed_flags(model: nn.Module) -> nn.Module:
    """Some parameters frozen, one submodule in training mode, a hook."""
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
    next(reversed(list(model.modules()))).train()
    model.register_forward_hook(lambda module, args, output: None)
    return model


@pytest.mark.parametrize("name", ["residual", "in_place", "spectral_norm", "language_model"])
def test_the_users_model_stays_as_it_is(name: str) -> None:
    model = mixed_flags(BY_NAME[name].model())
    before = snapshot(model)
    for prefer in ("auto", "graph"):
        halved(model, BY_NAME[name].inputs(), prefer)  # type: ignore[arg-type]
    assert snapshot(model) == before


@outcomes
def test_the_users_model_stays_as_it_is_after_an_error(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ProofError("no")

    model = mixed_flags(BY_NAME["residual"].model())
    before = snapshot(model)
    monkeypatch.setattr(apply, "prove", refuse)
    with pytest.raises(SecateurError):
        halved(model, BY_NAME["residual"].inputs(), prefer)
    assert snapshot(model) == before


def test_the_users_model_stays_as_it_is_when_its_forward_fails() -> None:
    model = mixed_flags(BY_NAME["in_place"].model())
    before = snapshot(model)
    with pytest.raises(SecateurError):
        study(model, torch.randn(2, 5, 8, 8))
    assert snapshot(model) == before


def test_a_result_shares_no_memory_with_the_users_model() -> None:
    case = BY_NAME["residual"]
    model = case.model()
    before = snapshot(model)
    for prefer in ("module", "graph"):
        result = halved(model, case.inputs(), prefer).model  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor in (*result.parameters(), *result.buffers()):
                tensor.zero_()
    assert snapshot(model) == before


@outcomes
@pytest.mark.parametrize("training", [True, False])
def test_training_mode_survives(prefer: Prefer, training: bool) -> None:
    case = BY_NAME["flatten"]
    result = halved(case.model().train(training), case.inputs(), prefer).model
    assert result.training is training
    modes = {n: m.training for n, m in result.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear | nn.Dropout)}
    assert set(modes.values()) == {training}
    assert {"features.0.1", "classifier.1", "classifier.3"} <= set(modes)


@outcomes
def test_requires_grad_survives(prefer: Prefer) -> None:
    case = BY_NAME["residual"]
    model = mixed_flags(case.model())
    result = halved(model, case.inputs(), prefer).model
    assert {n: p.requires_grad for n, p in result.named_parameters()} == {n: p.requires_grad for n, p in model.named_parameters()}


@outcomes
def test_parameters_have_the_users_names_and_buffers_stay_buffers(prefer: Prefer) -> None:
    case = BY_NAME["buffers"]
    model = case.model()
    result = halved(model, case.inputs(), prefer).model
    assert {n for n, _ in result.named_parameters()} == {n for n, _ in model.named_parameters()}
    buffers = dict(result.named_buffers())
    assert {n: tuple(b.shape) for n, b in buffers.items()} == {"mean": (3, 1, 1), "factor": (4, 1, 1), "ramp": (3,)}
    assert not any(isinstance(b, nn.Parameter) for b in buffers.values())


@outcomes
@pytest.mark.parametrize("name", ["grouped", "layer_scale"])
def test_a_state_dict_of_one_outcome_has_the_names_of_the_users(name: str, prefer: Prefer) -> None:
    case = BY_NAME[name]
    model = case.model()
    assert set(halved(model, case.inputs(), prefer).model.state_dict()) == set(model.state_dict())


@outcomes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_of_length_and_direction_stay_so(prefer: Prefer, dtype: torch.dtype) -> None:
    case = BY_NAME["weight_norm"]
    model, image = case.model().to(dtype), case.inputs().to(dtype)
    model.second.parametrizations.weight.original0.requires_grad_(False)
    found = study(model, image)
    plan = found.plan(ratio=0.5)
    result = rewrite(found.cut(plan), prefer=prefer)
    small, kept = result.model, {edit.group: sorted(set(range(edit.size)) - set(edit.remove)) for edit in plan.prunes}
    assert (result.kind, result.proof.holds) == (prefer, True)
    assert any("layers compute first.weight, second.weight" in note for note in result.notes)
    assert parametrize.is_parametrized(small.second, "weight")
    assert set(small.state_dict()) == set(model.state_dict())
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {n: p.requires_grad for n, p in model.named_parameters()}
    assert (small.second.in_channels, small.second.out_channels) == (4, 3)
    rows, columns = kept["second"], kept["first"]
    few = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(small.second.weight, model.second.weight[rows][:, columns], rtol=few, atol=few)


@outcomes
def test_lengths_and_directions_behind_hooks_stay_so(prefer: Prefer) -> None:
    case = BY_NAME["weight_norm_by_hooks"]
    model = case.model()
    model.second.weight_g.requires_grad_(False)
    result = halved(model, case.inputs(), prefer)
    small = result.model
    assert (result.kind, result.proof.holds) == (prefer, True)
    assert set(small.state_dict()) == set(model.state_dict())
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {n: p.requires_grad for n, p in model.named_parameters()}
    before = small(case.inputs())
    with torch.no_grad():
        small.second.weight_v.mul_(2)
    torch.testing.assert_close(small(case.inputs()), before)
    with torch.no_grad():
        small.second.weight_g.mul_(2)
    assert not torch.allclose(small(case.inputs()), before)


def test_a_layer_of_a_graph_computes_an_uncut_weight_from_the_very_same_tensors() -> None:
    case = BY_NAME["spectral_norm"]
    model = case.model()
    found = study(model, case.inputs())
    result = rewrite(found.cut(found.plan(ratio=0.0)), prefer="graph").model
    assert {n: t.tolist() for n, t in result.state_dict().items()} == {n: t.tolist() for n, t in model.state_dict().items()}


def test_a_weight_that_is_standardised_on_the_way_is_a_layers_own_in_a_graph() -> None:
    case = BY_NAME["standardised"]
    model = case.model()
    result = halved(model, case.inputs(), "graph").model
    assert isinstance(result.second, nn.Conv2d)
    assert set(result.state_dict()) == set(model.state_dict())


def test_a_parametrization_that_cannot_be_turned_round_goes_into_a_graph() -> None:
    case = BY_NAME["spectral_norm"]
    result = halved(case.model(), case.inputs())
    assert (result.kind, result.proof.holds) == ("graph", True)


def test_a_computed_weight_that_is_off_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    store = module.store
    monkeypatch.setattr(module, "store", lambda model, name, value: store(model, name, 1.001 * value))
    case = BY_NAME["weight_norm"]
    with pytest.raises(SecateurError, match="not the kept part"):
        halved(case.model(), case.inputs(), "module")


class Passing(nn.Module):
    """A buffer that is no part of the state, and a tensor that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("shift", torch.rand(8), persistent=False)
        self.scale = torch.rand(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) + self.shift) * self.scale)


def test_buffers_that_are_no_part_of_the_state_stay_so() -> None:
    model = Passing()
    result = halved(model, torch.randn(2, 3), "graph").model
    assert set(result.state_dict()) == set(model.state_dict())
    assert "shift" in dict(result.named_buffers())


class Router(nn.Module):
    """Scores experts by a product with a weight, beside tensors that no linear layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.temperature = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.rand(1) + 1)
        self.register_buffer("table", torch.tensor([2, 0, 1]))
        self.register_buffer("shift", torch.rand(1), persistent=False)
        self.in_features = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x[:, self.table], self.weight) * self.temperature + self.shift


class Renaming(Router):
    """Reads a tensor under a name that a linear layer has for something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.in_features


@pytest.mark.parametrize("router", [Router, Renaming])
def test_what_a_module_holds_beside_the_tensors_of_a_layer_stays_with_it(router: type[nn.Module]) -> None:
    model = nn.Sequential(router(), nn.ReLU(), nn.Linear(8, 2))
    result = halved(model, torch.randn(2, 3), "graph").model
    assert set(result.state_dict()) == set(model.state_dict())
    assert dict(result.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert "0.shift" in dict(result.named_buffers())


class Spare(nn.Module):
    """A layer, a buffer and a name that forward never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.spare = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(2, 2)
        self.register_buffer("seen", torch.tensor(3))
        self.again, self.spare_again = self.last, self.spare

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


@outcomes
def test_what_forward_never_reads_stays_in_the_state_dict(prefer: Prefer) -> None:
    model = Spare()
    result = halved(model, torch.randn(2, 3), prefer).model
    before, after = model.state_dict(), result.state_dict()
    assert set(after) == set(before)
    for name in ("spare.weight", "spare.bias", "seen"):
        assert torch.equal(after[name], before[name])
        assert after[name].data_ptr() != before[name].data_ptr()
    assert result.get_parameter("spare_again.weight") is result.get_parameter("spare.weight")
    assert {n for n, _ in result.named_parameters()} == {n for n, _ in model.named_parameters()}


@outcomes
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["layer_scale"])
def test_the_type_of_numbers_survives(name: str, dtype: torch.dtype, prefer: Prefer) -> None:
    case = BY_NAME[name]
    model, inputs = case.model().to(dtype), case.inputs().to(dtype)
    result = halved(model, inputs, prefer)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.model(inputs).dtype == dtype
    assert result.proof.error <= 1e-9


class TiedChain(nn.Module):
    """Two layers with one weight, transposed in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.third = nn.Linear(12, 12)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))


class Aliased(nn.Module):
    """One table under two names, one of which no call uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 12)
        self.spare = nn.ParameterList([self.embed.weight])

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.relu(self.embed(ids)), self.embed.weight)


@pytest.mark.parametrize(
    ("build", "inputs", "names"),
    [
        (BY_NAME["language_model"].model, BY_NAME["language_model"].inputs, ("embed.weight", "head.weight")),
        (TiedChain, lambda: torch.randn(2, 6), ("second.weight", "third.weight")),
        (Aliased, lambda: torch.randint(0, 9, (2, 4)), ("embed.weight", "spare.0")),
    ],
    ids=["embedding", "layers", "alias"],
)
@pytest.mark.parametrize("prefer", ["auto", "graph"])
def test_tied_weights_stay_one(build: Callable[[], nn.Module], inputs: Callable[[], Any], names: tuple[str, str], prefer: Prefer) -> None:
    result = halved(build(), inputs(), prefer).model
    first, second = (result.get_parameter(name) for name in names)
    assert first is second
    assert first.shape[1] < dict(build().named_parameters(remove_duplicate=False))[names[0]].shape[1]


@outcomes
def test_kept_weights_have_the_very_bits_of_the_users(prefer: Prefer) -> None:
    case = BY_NAME["residual"]
    model = case.model()
    found = study(model, case.inputs())
    plan = found.plan(indices={"conv1": [0, 2, 5]})
    result = rewrite(found.cut(plan), prefer=prefer).model
    kept = [c for c in range(12) if c not in (0, 2, 5)]
    assert torch.equal(result.get_parameter("conv1.weight"), model.get_parameter("conv1.weight")[kept])
    assert torch.equal(result.get_buffer("norm1.running_var"), model.get_buffer("norm1.running_var")[kept])
    assert torch.equal(result.get_parameter("conv2.weight"), model.get_parameter("conv2.weight")[:, kept])
    assert torch.equal(result.get_parameter("conv3.weight"), model.get_parameter("conv3.weight"))


def test_the_users_class_keeps_its_type_and_its_layers_tell_their_new_widths() -> None:
    case = BY_NAME["grouped"]
    found = study(case.model(), case.inputs())
    heads = next(g.name for g in found.groups if g.kind == "blocks" and "stem" not in g.name)
    result = rewrite(found.cut(found.plan(indices={heads: [1]})), prefer="module").model
    assert type(result) is type(found.model)
    layer = result.get_submodule("block.1.0")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.groups, layer.in_channels, layer.out_channels, tuple(layer.weight.shape)) == (3, 12, 12, (12, 4, 3, 3))
    assert result.get_submodule("block.1.1").num_features == 12


def test_a_recurrent_layer_tells_its_new_sizes_also_where_they_were_equal() -> None:
    class Equal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cells, self.last = nn.Linear(3, 8), nn.LSTM(8, 8, num_layers=2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.cells(self.first(x))[0])

    found = study(Equal(), torch.randn(4, 2, 3))
    cells = rewrite(found.cut(found.plan(ratios={"first": 0.5, "cells": 0.25})), prefer="module").model.get_submodule("cells")
    assert isinstance(cells, nn.LSTM)
    assert (cells.input_size, cells.hidden_size) == (4, 6)
    assert cells.weight_ih_l1.shape == (24, 6)
    cells.flatten_parameters()
    assert cells.all_weights[0][0] is cells.weight_ih_l0


def test_both_branches_of_a_condition_are_cut_and_run_afterwards() -> None:
    torch.manual_seed(0)
    model, x = Conditional().eval(), torch.randn(2, 6)
    found = study(model, x)
    result = rewrite(found.cut(found.plan(ratio=0.5)))
    assert result.model.one.weight.shape == result.model.other.weight.shape == (5, 6)
    with torch.no_grad():
        assert [result.model(each).shape for each in (x, 1000 * x)] == [(2, 4)] * 2


class Router(nn.Module):
    """Notes the width of what it reads, and of nothing that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.weight = nn.Parameter(torch.randn(3, 12))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.reshape(-1, self.width), self.weight)


def test_a_width_that_only_a_weight_tells_is_found() -> None:
    torch.manual_seed(0)
    result = halved(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), Router()).eval(), torch.randn(5, 4))
    assert (result.kind, result.model[2].width) == ("module", 6)


class Placed(nn.Module):
    """A table of as many places as there are channels; the number of channels is read in forward, and so is the number of places."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.longest = 8, 8
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(8, 8)
        self.hidden, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.scale = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.longest:
            raise ValueError("too long")
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        return self.last(self.hidden(self.scale(h)).relu())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.weight = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.width) * self.weight


def test_a_number_that_equals_a_width_by_chance_stays_in_the_class() -> None:
    done = halved(Placed().eval(), torch.randint(0, 20, (2, 5)), "module")
    assert done.model.words.weight.shape[1] == 4
    assert done.model.scale.width == 4
    assert done.model.longest == 8
    assert done.model(torch.randint(0, 20, (2, 7))).shape == (2, 7, 3)
