"""The recorder sees whole ATen calls, names the user's tensors, and leaves the model alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from capture.models import Branching, ConvNet, Counting, Creating, Memory, Nested, Tied, Wrapped
from networks.transforms import Conditional, Forces, Mapped
from secateur.capture import Capture, Fact, record
from secateur.capture import record as record_function
from secateur.capture.record import can_record
from secateur.capture.verify import check_equal
from secateur.errors import CaptureError

aten = torch.ops.aten


def calls(capture: Capture) -> list[object]:
    return [node.target for node in capture.graph.nodes if node.op == "call_function"]


def rerun(capture: Capture, *args: object, **kwargs: object) -> object:
    return pytree.tree_unflatten(list(capture.program(*pytree.tree_leaves((args, kwargs)))), capture.out_spec)


def test_the_installed_torch_lets_us_record() -> None:
    assert can_record()


def test_layers_stay_whole_and_named() -> None:
    capture = record(ConvNet(), (torch.randn(2, 3, 4, 4),))
    assert calls(capture) == [
        aten.conv2d.default,
        aten.batch_norm.default,
        aten.relu_.default,
        aten.mean.dim,
        aten.dropout.default,
        aten.linear.default,
    ]
    paths = [node.meta["module"] for node in capture.graph.nodes if node.op == "call_function"]
    assert paths == ["features.0", "features.1", "features.2", "", "drop", "head"]
    leaves = [node.target for node in capture.graph.find_nodes(op="get_attr")]
    assert leaves[:4] == ["features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"]
    assert all("fact" in node.meta and "module" in node.meta for node in capture.graph.nodes if node.op != "output")
    assert capture.leaf("head.weight") is capture.model.head.weight


@pytest.mark.parametrize("model", [ConvNet(), nn.Conv2d(3, 4, 2, groups=1)])
def test_the_graph_follows_other_values(model: nn.Module) -> None:
    capture = record(model, (torch.randn(2, 3, 4, 4),))
    other = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(rerun(capture, other), model.eval()(other))


def test_attention_shows_its_projections() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    torch.backends.mha.set_fastpath_enabled(True)
    capture = record(layer, (torch.randn(2, 3, 8),))
    assert calls(capture).count(aten.linear.default) == 4
    assert aten.scaled_dot_product_attention.default in calls(capture)
    assert torch.backends.mha.get_fastpath_enabled()


def test_control_flow_is_that_of_the_example() -> None:
    model = Branching()
    up, down = record(model, (torch.ones(1, 3),)), record(model, (-torch.ones(1, 3),))
    assert {str(node.target) for node in up.graph.find_nodes(op="get_attr")} == {"up.weight", "up.bias"}
    assert {str(node.target) for node in down.graph.find_nodes(op="get_attr")} == {"down.weight", "down.bias"}


def test_functions_views_and_data_are_followed() -> None:
    model, other = Wrapped(), torch.randn(2, 3)
    capture = record(model, (torch.randn(2, 3),))
    torch.testing.assert_close(rerun(capture, other), model(other))
    assert not any(name.startswith("_constant_") for name in capture.tied)


def test_created_tensors_and_lists() -> None:
    model, other = Creating(), torch.randn(2, 4)
    capture = record(model, (torch.randn(2, 4),))
    torch.testing.assert_close(rerun(capture, other), model(other))
    assert {aten.arange.default, aten.lift_fresh_copy.default} <= set(calls(capture))
    index = capture.graph.find_nodes(op="call_function", target=aten.flip.default)[0]
    assert index.meta["constant"]
    assert torch.equal(index.meta["fact"].value, torch.tensor([1, 0]))
    assert torch.equal(capture.leaf("_constant_0"), torch.tensor([1.0, 2.0]))
    assert not [node for node in capture.graph.nodes if node.op == "call_function" and not node.users]


def test_scalars_stay_python_numbers() -> None:
    capture = record(Creating(), (torch.randn(2, 4),))
    assert [node.args[1] for node in capture.graph.find_nodes(op="call_function", target=aten.mul.Tensor)] == [2.0, 2.0]


def test_tied_tensors_are_one_leaf() -> None:
    capture = record(Tied(), (torch.tensor([[1, 2]]),))
    assert capture.tied == {"embed.weight": ("embed.weight", "head.weight")}
    assert len(capture.graph.find_nodes(op="get_attr")) == 1


def test_nested_inputs_and_outputs() -> None:
    model = Nested()
    pair, options = (torch.randn(2, 3), torch.randn(2, 3)), {"shift": torch.randn(2, 3)}
    capture = record(model, (pair,), {"scale": 2.0, "options": options})
    assert [node.meta["fact"] for node in capture.graph.find_nodes(op="placeholder")][2] == 2.0
    found, expected = rerun(capture, pair, scale=2.0, options=options), model(pair, scale=2.0, options=options)
    assert isinstance(found, dict)
    torch.testing.assert_close(found["y"][0], expected["y"][0])
    assert (found["y"][1], found["n"]) == (None, 4)
    assert isinstance(found["memory"], Memory)
    assert found["memory"].length == 3
    torch.testing.assert_close(found["memory"].layers[0]["k"], expected["memory"].layers[0]["k"])


def test_state_that_a_forward_writes_is_put_back() -> None:
    model = Counting()
    model.train()
    attributes = set(vars(model))
    capture = record(model, (torch.ones(2),))
    assert torch.equal(model.count, torch.zeros(2))
    assert torch.equal(model.last, torch.zeros(1))
    assert torch.equal(model.anchor, torch.ones(2))
    assert model.notes == {"calls": 0}
    assert model.training
    assert set(vars(model)) == attributes
    for _ in range(2):
        torch.testing.assert_close(rerun(capture, torch.ones(2)), torch.tensor([3.0, 2.0]))
    assert torch.equal(model.count, torch.zeros(2))


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.norm.eval()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale[:1].mul_(3)
        self.scale.requires_grad_(False)
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        self.norm(x)
        raise RuntimeError("no more")


def test_an_exception_leaves_nothing_behind() -> None:
    model, inputs = Failing(), torch.ones(2, 2)
    hook = model.norm.register_forward_hook(lambda *_: None)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError, match="no more"):
        record(model, (inputs,))
    assert torch.equal(model.scale, torch.ones(2))
    assert model.scale.requires_grad
    assert (model.training, model.norm.training) == (True, False)
    assert list(model.norm._forward_hooks) == [hook.id]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    torch.testing.assert_close(record(nn.Linear(2, 2), (inputs,)).program(inputs)[0].shape, torch.Size([2, 2]))


def test_inputs_are_left_alone() -> None:
    inputs = torch.full((2, 2), -1.0)
    capture = record(nn.ReLU(inplace=True), (inputs,))
    assert torch.equal(inputs, torch.full((2, 2), -1.0))
    assert torch.equal(capture.program(inputs)[0], torch.zeros(2, 2))
    assert torch.equal(inputs, torch.full((2, 2), -1.0))


@pytest.mark.parametrize("make", [Mapped, Forces])
def test_what_torch_func_and_autograd_make_of_calls_is_recorded(make: type[nn.Module]) -> None:
    model, other = make(), torch.randn(2, 6)
    capture = record(model, (torch.randn(2, 6),))
    for ours, theirs in zip(capture.program(other), pytree.tree_leaves(model(other)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_both_branches_of_a_condition_are_recorded() -> None:
    model = Conditional()
    capture = record(model, (torch.randn(2, 6),))
    assert {str(node.target) for node in capture.graph.find_nodes(op="get_attr")} == {name for name, _ in model.named_parameters()}
    assert not capture.decided
    with torch.no_grad():
        for other in (torch.randn(2, 6), 1000 * torch.randn(2, 6)):
            torch.testing.assert_close(capture.program(other)[0], model(other))


def test_a_higher_order_operator_that_nobody_can_run_is_named() -> None:
    class Strange(torch._ops.HigherOrderOperator):
        def __init__(self) -> None:
            super().__init__("secateur_tests_strange")  # type: ignore[no-untyped-call]

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x)  # type: ignore[no-any-return,no-untyped-call]

    class Calling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return strange(x)

    strange = Strange()
    with pytest.raises(CaptureError, match="secateur_tests_strange"):
        record(Calling(), (torch.ones(2),))


@pytest.mark.parametrize("make", [ConvNet, Creating, Counting, Tied])
def test_tracing_agrees_where_recording_is_not_possible(make: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    inputs = {ConvNet: torch.randn(2, 3, 4, 4), Wrapped: torch.randn(2, 3), Creating: torch.randn(2, 4), Tied: torch.tensor([[1, 2]])}
    args = (inputs.get(make, torch.ones(2)),)
    recorded = record(model, args)
    monkeypatch.setitem(record_function.__globals__, "can_record", lambda: False)
    traced = record(model, args)
    assert (recorded.how, traced.how) == ("record", "trace")
    torch.testing.assert_close(traced.program(*args)[0], recorded.program(*args)[0])
    assert [n.target for n in traced.graph.find_nodes(op="get_attr")] == [n.target for n in recorded.graph.find_nodes(op="get_attr")]


def test_tracing_refuses_what_it_bakes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(record_function.__globals__, "can_record", lambda: False)
    with pytest.raises(CaptureError, match="Output 0 of the captured graph"):
        record(Wrapped(), (torch.randn(2, 3),))


def test_hooks_of_the_user_run() -> None:
    model = nn.Linear(3, 3)
    model.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    capture = record(model, (torch.randn(2, 3),))
    assert calls(capture) == [aten.mul.Tensor, aten.linear.default]


def test_work_out_of_sight_is_noticed() -> None:
    class Numpy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y.numpy()[:] = 0
            return y

    with pytest.raises(CaptureError, match="but the model returned"):
        record(Numpy(), (torch.ones(2),))


def test_operands_that_no_graph_holds_are_refused() -> None:
    class Storing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(0).set_(x.untyped_storage())

    with pytest.raises(CaptureError, match="takes a UntypedStorage"):
        record(Storing(), (torch.ones(2),))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (torch.ones(2), torch.ones(1)),
        (torch.ones(2), torch.ones(2).double()),
        (torch.ones(2), torch.tensor([1.0, 1.001])),
        (torch.ones(2), torch.tensor([1.0, float("nan")])),
        (torch.tensor([1]), torch.tensor([2])),
        (1, 1.0),
        (None, torch.ones(1)),
    ],
)
def test_differences_are_noticed(found: object, expected: object) -> None:
    check_equal([expected], [expected])
    with pytest.raises(CaptureError, match="Output 0"):
        check_equal([found], [expected])
    with pytest.raises(CaptureError, match="1 values where the model returns 2"):
        check_equal([found], [expected, expected])


def test_recurrent_layers_stay_whole() -> None:
    capture = record(nn.LSTM(3, 4, batch_first=True), (torch.randn(2, 5, 3),))
    assert aten.lstm.input in calls(capture)
    assert [fact.shape for fact in capture.graph.find_nodes(op="call_function", target=aten.lstm.input)[0].meta["fact"]] == [
        (2, 5, 4),
        (1, 2, 4),
        (1, 2, 4),
    ]


def test_facts_hold_the_example_sizes() -> None:
    capture = record(ConvNet(), (torch.randn(2, 3, 4, 4),))
    assert capture.graph.find_nodes(op="call_function", target=aten.linear.default)[0].meta["fact"] == Fact((2, 5), torch.float32)
