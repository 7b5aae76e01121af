"""What one run of a graph tells."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from secateur.capture import Fact, observe
from secateur.capture.facts import settle

aten = torch.ops.aten


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("table", torch.tensor([2, 1, 0]))
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("_constant_0", torch.tensor([0.5]))


def value(node: fx.Node) -> Tensor | None:
    fact = node.meta["fact"]
    assert isinstance(fact, Fact)
    return fact.value


def test_shapes_dtypes_lists_and_numbers() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(aten.sym_size.int, (x, 1))
    parts = graph.call_function(aten.split.Tensor, (x, 2, 1))
    graph.output((graph.call_function(aten.argmax.default, (x,)), size, parts))
    observe(fx.GraphModule(Holder(), graph), [torch.ones(2, 3)])
    assert size.meta["fact"] == 3
    assert parts.meta["fact"] == [Fact((2, 2), torch.float32), Fact((2, 1), torch.float32)]
    assert graph.find_nodes(op="call_function", target=aten.argmax.default)[0].meta["fact"] == Fact((), torch.int64)


def test_values_are_kept_where_inputs_have_no_say() -> None:
    graph = fx.Graph()
    x, weight, table, constant = graph.placeholder("x"), graph.get_attr("weight"), graph.get_attr("table"), graph.get_attr("_constant_0")
    picked = graph.call_function(aten.index_select.default, (weight, 1, table))
    large = graph.call_function(aten.zeros.default, ([1000, 1000],))
    noise = graph.call_function(aten.rand.default, ([2],))
    used = graph.call_function(aten.mul.Tensor, (x, picked))
    graph.output((used, large, noise, constant))
    state = torch.get_rng_state()
    observe(fx.GraphModule(Holder(), graph), [torch.ones(2, 3)])
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(value(picked), torch.tensor([[2.0, 1, 0], [5, 4, 3]]))
    torch.testing.assert_close(value(table), torch.tensor([2, 1, 0]))
    torch.testing.assert_close(value(constant), torch.tensor([0.5]))
    assert [value(node) for node in (x, weight, large, noise, used)] == [None] * 5
    assert [node.meta["constant"] for node in (x, weight, table, picked, noise, used)] == [False, True, True, True, False, False]


def test_a_write_leaves_no_stale_value() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    board = graph.call_function(aten.zeros.default, ([2, 3],))
    early = graph.call_function(aten.view.default, (board, [6]))
    row = graph.call_function(aten.select.int, (board, 0, 1))
    graph.call_function(aten.fill_.Scalar, (row, 7.0))
    between = graph.call_function(aten.sum.default, (board,))
    written = graph.call_function(aten.copy_.default, (board, x))
    after = graph.call_function(aten.sum.default, (board,))
    graph.output((early, between, written, after))
    observe(fx.GraphModule(Holder(), graph), [torch.ones(2, 3)])
    torch.testing.assert_close(value(between), torch.tensor(21.0))
    assert [value(node) for node in (board, early, row, written, after)] == [None] * 5
    assert not any(node.meta["constant"] for node in (board, early, row, written, after))


def test_stored_tensors_and_inputs_are_as_before() -> None:
    graph = fx.Graph()
    x, count = graph.placeholder("x"), graph.get_attr("count")
    counted = graph.call_function(aten.add_.Scalar, (count, 1.0))
    graph.output((graph.call_function(aten.mul_.Tensor, (x, counted)),))
    holder, inputs = Holder(), torch.full((3,), 5.0)
    program = fx.GraphModule(holder, graph)
    observe(program, [inputs])
    assert torch.equal(holder.count, torch.zeros(3))
    assert torch.equal(inputs, torch.full((3,), 5.0))
    torch.testing.assert_close(value(counted), torch.ones(3))


def test_settled_programs_write_to_copies() -> None:
    graph = fx.Graph()
    x, count = graph.placeholder("x"), graph.get_attr("count")
    view = graph.call_function(aten.slice.Tensor, (count, 0, 0, 2))
    graph.call_function(aten.add_.Scalar, (view, 1.0))
    graph.output((graph.call_function(aten.mul_.Tensor, (x, count)),))
    holder, inputs = Holder(), torch.full((3,), 5.0)
    program = fx.GraphModule(holder, graph)
    expected = torch.tensor([5.0, 5.0, 0.0])
    torch.testing.assert_close(settle(program, [inputs])[0], expected)
    for _ in range(2):
        torch.testing.assert_close(program(inputs)[0], expected)
    assert torch.equal(holder.count, torch.zeros(3))


def test_running_statistics_are_not_written() -> None:
    graph = fx.Graph()
    x, mean, variance = graph.placeholder("x"), graph.get_attr("count"), graph.get_attr("_constant_0")
    graph.output((graph.call_function(aten.batch_norm.default, (x, None, None, mean, variance, True, 0.5, 1e-5, False)),))
    holder = Holder()
    holder._constant_0 = torch.ones(3)
    program = fx.GraphModule(holder, graph)
    settle(program, [torch.randn(4, 3)])
    program(torch.randn(4, 3))
    assert torch.equal(holder.count, torch.zeros(3))
    assert torch.equal(holder._constant_0, torch.ones(3))
