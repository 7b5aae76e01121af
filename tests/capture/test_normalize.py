"""Laws of the graph clean-up: the same outputs, few operators, nothing in place, projections cut apart."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from secateur.capture.capture import Capture, Fact
from secateur.capture.export import export
from secateur.capture.facts import observe
from secateur.capture.normalize import normalize
from secateur.capture.record import record

aten = torch.ops.aten

WAYS: dict[str, Callable[..., Capture]] = {
    "recorded": record,
    "exported": functools.partial(export, dynamic=False),
    "exported-open": functools.partial(export, dynamic=True),
}


class Attention(nn.Module):
    """Attention with one fused projection, split and ordered in a way that ``cut`` chooses."""

    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 24)
        self.out = nn.Linear(8, 6)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self.qkv(x))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], 8))


def cut_unbind(y: Tensor) -> tuple[Tensor, ...]:
    return y.view(y.shape[0], y.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)


def cut_index(y: Tensor) -> tuple[Tensor, ...]:
    y = y.reshape(y.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).contiguous().unsqueeze(3).squeeze(3)
    return y[0], y[1], y[-1]


def cut_chunk_of_view(y: Tensor) -> tuple[Tensor, ...]:
    q, k, v = y.unflatten(-1, (3, 8)).chunk(3, dim=2)
    return tuple(each.squeeze(2).unflatten(-1, (2, 4)).transpose(1, 2) for each in (q, k, v))


def cut_twice(y: Tensor) -> tuple[Tensor, ...]:
    y = y.view(y.shape[0], y.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
    k, v = y[1:].unbind(0)
    return y[0], k, v


def cut_moved_aside(y: Tensor) -> tuple[Tensor, ...]:
    y = y.unflatten(-1, (3, 2, 4)).unsqueeze(0).transpose(0, 3).squeeze(3).transpose(2, 3)
    return y[0], y[1], y[2]


def cut_interleaved(y: Tensor) -> tuple[Tensor, ...]:
    return y.view(y.shape[0], y.shape[1], 2, 3, 4).permute(3, 0, 2, 1, 4).unbind(0)


OUTERMOST = [cut_unbind, cut_index, cut_chunk_of_view, cut_twice, cut_moved_aside]


class ConvolutionAttention(nn.Module):
    """Attention over places with a fused 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(5, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 3, 2, 4, 9).unbind(1)
        return torch.matmul(v, (q.transpose(-2, -1) @ k).softmax(-1))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, dim=1)
        c, d, e = torch.tensor_split(self.linear((a * b.sigmoid()).flatten(2).mT), 3, dim=-1)
        return torch.concat([c * d, e], -1)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.second = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        b, _, h, w = y.shape
        return self.second(y.view(b, 2, 3, h, w).transpose(1, 2).contiguous().view(b, 6, h, w))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        z = self.act(y)
        z += self.conv(x)
        z.mul_(y).clamp_(max=2.0)
        return self.drop(z.flatten(1)) - y.flatten(1)


class Shares(nn.Module):
    """The largest of several values, written over by their shares while their places are read too."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        values, places = self.score(x).exp().topk(3, -1)
        values /= values.sum(-1, keepdim=True)
        return values * places


class Assign(nn.Module):
    """Writes to parts of tensors, and reads the wholes, the parts and other parts afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(6))
        self.linear = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen += 1
        bias = self.bias.clone()
        bias[2:4].zero_()
        y = F.linear(x, self.linear.weight, bias)
        early, last = y[:, :2], y.transpose(1, 2)[:, -1]
        y[:, 1:] = x[:, :-1]
        y[0, 0, 1] = 3.0
        y.view(x.shape[0], -1, 2, 3)[..., 1].mul_(2.0)
        y.permute(2, 0, 1)[3:5].sub_(0.25)
        y.unbind(1)[1].fill_(0.5)
        y.split([2, 4], dim=-1)[1].add_(1.0)
        y[:] = y + 1
        mask = torch.zeros_like(y)
        mask[y > 0] = 1.0
        mask.masked_fill_(y > 1.0, -1.0)
        y.unsqueeze(1).squeeze(1).mul_(1.5)
        return y, early, last, mask


class Promote(nn.Module):
    """Adds wider numbers to narrower ones in place, which keeps the narrower dtype."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        y += x
        return y.to(torch.float64)


class Windows(nn.Module):
    """Partition into windows and back, which permutes two dimensions at once."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = x.view(b, 2, h // 2, 2, w // 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b * 4, -1, c)
        y = self.linear(y).view(b, 2, 2, h // 2, w // 2, c).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(y.reshape(b, h, w, c), (1, 1), (1, 2)).narrow(1, 1, h - 1).movedim(3, 1)


class Standardised(nn.Module):
    """Convolution with a weight of zero mean and unit variance for each output channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.gain = nn.Parameter(torch.rand(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        flat = F.batch_norm(weight.reshape(1, 4, -1), None, None, training=True).reshape_as(weight)
        return F.conv2d(F.conv2d(x, flat * self.gain, self.conv.bias), self.gain.expand(4, 4, 1, 1) * 2)


class Copies(nn.Module):
    """Copies, conversions and checks that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.linear(x).detach().clone()
        y = F.dropout(y.to(x.dtype).type_as(x), 0.5, self.training)
        return (y.contiguous()[:, :] * torch.tensor(2.0)).expand_as(x).absolute()


class Rotary(nn.Module):
    """Complex numbers, whose memory has to lie in pairs."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (2, -1)).transpose(-1, -2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.tensor(1.0), torch.tensor(0.3))).to(x.dtype).flatten(-2)


class Powers(nn.Module):
    """In-place operators whose overloads are named otherwise, or which only turn a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1.5).pow_(2).t_().unsqueeze_(0).sub_(x.t())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f"attention-{cut.__name__}": ((lambda cut=cut: Attention(cut)), (2, 5, 6)) for cut in [*OUTERMOST, cut_interleaved]},
    "attention-multihead": (lambda: SelfAttention(), (2, 5, 6)),
    "attention-convolution": (ConvolutionAttention, (2, 5, 3, 3)),
    "gate": (Gate, (2, 3, 4, 4)),
    "shuffle": (Shuffle, (2, 3, 4, 4)),
    "shares": (Shares, (2, 6)),
    "in-place": (InPlace, (2, 3, 4, 4)),
    "assign": (Assign, (2, 4, 6)),
    "promote": (Promote, (3, 2)),
    "windows": (Windows, (2, 4, 6, 3)),
    "standardised": (Standardised, (2, 3, 6, 6)),
    "copies": (Copies, (2, 3)),
    "rotary": (Rotary, (2, 3, 4)),
    "powers": (Powers, (2, 3)),
}
DYNAMIC = [name for name in CASES if name not in {"promote", "standardised"}]


class SelfAttention(nn.Module):
    """Torch's own attention, called as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def build(name: str, *, examples: int = 2) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    make, size = CASES[name]
    model = make().double().eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model, (torch.randn(size, dtype=torch.float64)[:examples],)


@functools.cache
def captured(name: str, way: str = "recorded", *, examples: int = 2) -> Capture:
    """A capture that tests share: what they do with it may not change it."""
    return WAYS[way](*build(name, examples=examples))


@functools.cache
def normalized(name: str, way: str = "recorded", *, examples: int = 2) -> Capture:
    return normalize(captured(name, way, examples=examples))


def outputs(capture: Capture, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    with torch.no_grad():
        return capture.program(*(each.clone() for each in args))


def assert_same(found: tuple[Any, ...], wanted: tuple[Any, ...], atol: float = 0.0) -> None:
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=atol)


def count(capture: Capture) -> Counter[Any]:
    return Counter(node.target for node in capture.graph.nodes if node.op == "call_function")


def slices(capture: Capture, target: Any) -> list[Any]:
    """What is cut out of the first result of an operator, if it is only cut (and asked for its sizes)."""
    node = next(node for node in capture.graph.nodes if node.target is target)
    readers = [user for user in node.users if user.target is not aten.sym_size.int]
    assert all(user.target is aten.slice.Tensor for user in readers)
    return sorted(user.args[1:] for user in readers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_exactly_as_they_were(name: str, way: str) -> None:
    capture = captured(name, way)
    assert_same(outputs(normalized(name, way), capture.args), outputs(capture, capture.args), atol=1e-15 if "multihead" in name else 0.0)


@pytest.mark.parametrize("way", ["recorded", "exported"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_written_in_place_and_movements_have_one_name(name: str, way: str) -> None:
    found = count(normalized(name, way)) - (Counter([aten.contiguous.default, aten.clone.default]) if name == "rotary" else Counter())
    spellings = {aten.view.default, aten.transpose.int, aten.t.default, aten.chunk.default, aten.split.Tensor, aten.narrow.default,
                 aten.clone.default, aten.contiguous.default, aten.detach.default, aten.flatten.using_ints}  # fmt: skip
    assert not spellings & set(found)
    assert not [target for target in found if target is not operator.getitem and target._schema.is_mutable]


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("examples", [1, 2])
def test_open_batch_size_stays_open(name: str, examples: int) -> None:
    capture, normal = captured(name, "exported-open", examples=examples), normalized(name, "exported-open", examples=examples)
    assert capture.dynamic
    for size in (1, 3, 7):
        other = (torch.randn(size, *CASES[name][1][1:], dtype=torch.float64),)
        assert_same(outputs(normal, other), outputs(capture, other), atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["shuffle", "assign", "standardised", *(f"attention-{cut.__name__}" for cut in OUTERMOST)])
def test_given_capture_is_not_changed(name: str, way: str) -> None:
    capture = captured(name, way)
    model = capture.model
    before, state = str(capture.graph), {path: tensor.clone() for path, tensor in model.state_dict().items()}
    metas = {node: dict(node.meta) for node in capture.graph.nodes}
    normal = normalize(capture)
    assert str(capture.graph) == before
    assert {node: dict(node.meta) for node in capture.graph.nodes} == metas
    assert_same(tuple(model.state_dict().values()), tuple(state.values()))
    shared = dict(model.named_parameters())
    assert all(tensor is shared[path] for path, tensor in normal.program.named_parameters() if path in shared)


@pytest.mark.parametrize("name", CASES)
def test_every_node_tells_its_module_and_fact(name: str) -> None:
    normal = normalized(name)
    nodes = [node for node in normal.graph.nodes if node.op != "output"]
    told = [(node.meta["fact"], node.meta["constant"]) for node in nodes]
    observe(normal.program, normal.flat_inputs())
    assert told == [(node.meta["fact"], node.meta["constant"]) for node in nodes]
    assert {node.meta["module"] for node in nodes} <= {path for path, _ in normal.model.named_modules()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", OUTERMOST)
def test_fused_projection_is_sliced_where_it_is_made(cut: Callable[[Tensor], tuple[Tensor, ...]], way: str) -> None:
    normal = normalized(f"attention-{cut.__name__}", way)
    assert slices(normal, aten.linear.default) == [(2, 0, 8), (2, 8, 16), (2, 16, 24)]
    assert not {aten.unbind.int, aten.select.int, aten.split_with_sizes.default} & set(count(normal))


@pytest.mark.parametrize("way", WAYS)
def test_multihead_projection_is_sliced_where_it_is_made(way: str) -> None:
    normal = normalized("attention-multihead", way)
    assert slices(normal, aten.linear.default) == [(2, 0, 6), (2, 6, 12), (2, 12, 18)]


@pytest.mark.parametrize("way", WAYS)
def test_fused_convolution_is_sliced_where_it_is_made(way: str) -> None:
    normal = normalized("attention-convolution", way)
    assert slices(normal, aten.conv2d.default) == [(1, 0, 8), (1, 8, 16), (1, 16, 24)]


def test_branch_of_a_projection_loses_the_selected_dimension() -> None:
    normal = normalized("attention-cut_unbind")
    attention = next(node for node in normal.graph.nodes if node.target is aten.scaled_dot_product_attention.default)
    permute = attention.args[0]
    assert (permute.target, permute.args[1]) == (aten.permute.default, [0, 2, 1, 3])
    assert (permute.args[0].target, permute.args[0].args[1]) == (aten.reshape.default, [2, 5, 2, 4])


def test_interleaved_projection_is_left_alone() -> None:
    normal = normalized("attention-cut_interleaved")
    projection = next(node for node in normal.graph.nodes if node.target is aten.linear.default)
    assert [user.target for user in projection.users] == [aten.reshape.default]
    assert count(normal)[aten.unbind.int] == 1


def test_chunks_of_channels_become_one_split() -> None:
    normal = normalized("gate")
    sizes = [node.args[1] for node in normal.graph.nodes if node.target is aten.split_with_sizes.default]
    assert sizes == [[4, 4], [2, 2, 2]]
    assert count(normal)[aten.cat.default] == 1


@pytest.mark.parametrize("way", WAYS)
def test_shuffle_becomes_a_selection_with_a_stored_order(way: str) -> None:
    normal = normalized("shuffle", way)
    selection = next(node for node in normal.graph.nodes if node.target is aten.index_select.default)
    assert selection.args[1] == 1
    assert normal.leaf(selection.args[2].target).tolist() == [0, 3, 1, 4, 2, 5]
    assert not {aten.reshape.default, aten.permute.default} & set(count(normal))


@pytest.mark.parametrize("way", WAYS)
def test_torchs_own_shuffle_becomes_the_same_selection(way: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ChannelShuffle(2), nn.Conv2d(6, 4, 1)).eval()
    normal = normalize(WAYS[way](model, (torch.randn(2, 3, 5, 5),)))
    selection = next(node for node in normal.graph.nodes if node.target is aten.index_select.default)
    assert selection.args[1] == 1
    assert normal.leaf(selection.args[2].target).tolist() == [0, 3, 1, 4, 2, 5]
    assert count(normal) == {aten.conv2d.default: 2, aten.index_select.default: 1}


class Picked(nn.Module):
    """Positions of a known table, of a table that is an input, of two dimensions at once, and rows of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.fc = nn.Parameter(torch.randn(4, 3)), nn.Linear(3, 5)

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, ...]:
        known, x = torch.tensor([1, -1]), self.fc(x)
        return x[:, known], x[:, table], x[known, known], self.rows[known]


@pytest.mark.parametrize("way", WAYS)
def test_indexing_of_one_dimension_by_a_known_table_becomes_a_selection(way: str) -> None:
    normal = normalize(WAYS[way](Picked().eval(), (torch.randn(4, 3), torch.tensor([0, 2]))))
    (selection,) = [node for node in normal.graph.nodes if node.target is aten.index_select.default]
    assert selection.args[1] == 1
    assert normal.leaf(selection.args[2].target).tolist() == [1, 4]
    assert count(normal)[aten.index.Tensor] == 3


class Strided(nn.Module):
    """A view by strides of something made, one that can be told otherwise or not."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], offset: int | None = None) -> None:
        super().__init__()
        self.place = (size, stride, offset)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_strided(x.relu(), *self.place).exp()


@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((2, 6, 4), (24, 4, 1)),
        ((4, 2, 6), (1, 24, 4)),
        ((2, 3, 1, 8), (24, 8, 5, 1)),
        ((2, 5, 2, 4), (24, 4, 4, 1)),
        ((2, 2, 3, 4), (24, 8, 4, 1)),
        ((2, 2, 4, 4), (24, 8, 4, 1)),
        ((2, 4, 4, 2), (24, 1, 4, 8)),
        ((2, 9, 8), (24, 2, 1)),
    ],
)
def test_windows_by_strides_become_windows(size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    x = torch.randn(2, 6, 4)
    capture = normalize(record(Strided(size, stride), (x,)))
    assert aten.as_strided.default not in count(capture)
    assert_same(outputs(capture, (x,)), (x.relu().as_strided(size, stride).exp(),))


@pytest.mark.parametrize("place", [((2, 5), (24, 5)), ((2, 23), (24, 1), 1), ((2, 3, 3), (24, 3, 7)), ((4, 4), (4, 4))])
def test_other_views_by_strides_stay(place: Any) -> None:
    assert aten.as_strided.default in count(normalize(record(Strided(*place), (torch.randn(2, 6, 4),))))


def test_windows_are_no_shuffle() -> None:
    assert aten.index_select.default not in count(normalized("windows"))


def test_dropout_is_kept_for_later_training() -> None:
    for name in ("in-place", "copies"):
        assert count(normalized(name, "exported"))[aten.dropout.default] == 1


def test_copies_and_checks_go() -> None:
    found = count(normalized("copies", "exported"))
    assert set(found) == {aten.linear.default, aten.dropout.default, aten.mul.Tensor, aten.abs.default}


def test_assigned_slice_is_scattered_only_where_the_whole_is_read() -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            part = y[:, :2]
            part.relu_()
            return part

    normal = normalize(record(Part(), (torch.randn(2, 4),)))
    assert set(count(normal)) == {aten.mul.Tensor, aten.slice.Tensor, aten.relu.default}


def test_write_that_is_not_understood_stays() -> None:
    class Diagonal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y.diagonal().zero_()
            return y.relu_()

    x = torch.randn(3, 3)
    capture = record(Diagonal(), (x,))
    normal = normalize(capture)
    assert {aten.zero_.default, aten.relu_.default} <= set(count(normal))
    assert_same(outputs(normal, (x,)), outputs(capture, (x,)))


def test_attention_keeps_its_temperature() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x) + F.scaled_dot_product_attention(x, x, x, scale=0.3)

    normal = normalize(record(Scaled(), (torch.randn(1, 2, 3, 16),)))
    scales = [node.kwargs["scale"] for node in normal.graph.nodes if node.target is aten.scaled_dot_product_attention.default]
    assert scales == [0.25, 0.3]


@pytest.mark.parametrize("way", ["recorded", "exported"])
def test_standardised_weight_is_stored_and_scaled_weight_stays_computed(way: str) -> None:
    normal = normalized("standardised", way)
    first, second = (node for node in normal.graph.nodes if node.target is aten.conv2d.default)
    name = first.args[1].target
    assert name == "conv.weight_folded"
    assert isinstance(normal.leaf(name), nn.Parameter)
    assert normal.leaf(name).mean(dim=(1, 2, 3)).abs().max() < 1e-9
    assert normal.tied[name] == (name,)
    assert any("conv.weight_folded" in note for note in normal.notes)
    assert second.args[1].target is aten.mul.Tensor
    assert "conv.weight" not in dict(normal.program.named_parameters())


def test_wrappers_that_remain_are_inlined_and_checks_go() -> None:
    body = fx.Graph()
    x = body.placeholder("x")
    body.output((body.call_function(aten.mul.Tensor, (x, 2)),))
    graph = fx.Graph()
    x = graph.placeholder("x")
    inner = graph.get_attr("inner")
    graph.call_function(aten._assert_tensor_metadata.default, (x, [3]))
    wrapped = graph.call_function(torch.ops.higher_order.wrap_with_set_grad_enabled, (False, inner, x))
    graph.output((graph.call_function(operator.getitem, (wrapped, 0)),))
    program = fx.GraphModule({"inner": fx.GraphModule({}, body)}, graph)
    value = torch.randn(3)
    blank = record(nn.Identity(), (value,))
    for node in graph.nodes:
        node.meta = {"module": "", "fact": Fact((3,), torch.float32)}
    normal = normalize(Capture(program, blank.model, (value,), {}, blank.in_spec, blank.out_spec, "given", {}))
    assert list(count(normal)) == [aten.mul.Tensor]
    assert {node.meta.get("module") for node in normal.graph.nodes} == {""}
    assert_same(outputs(normal, (value,)), (value * 2,))
