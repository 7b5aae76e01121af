"""MACs follow formulas by hand, and are half of what torch's own counter says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur.capture import Fact
from secateur.measure import count_macs, counts
from secateur.measure.einsum import contractions


class Function(nn.Module):
    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, *inputs):
        return self.function(*inputs, *self.parameters())


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **self.options)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    """Attention between two linear layers, so that weights and products both occur."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.inner = Attention()

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind()
        return x + self.out(self.inner(q, k, v).transpose(1, 2).flatten(2))


def einsum(equation):
    return Function(lambda *tensors: torch.einsum(equation, *tensors))


COUNTED = {
    "linear": (nn.Linear(6, 4), [(2, 3, 6)]),
    "conv1d": (nn.Conv1d(4, 6, 3), [(2, 4, 9)]),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), [(2, 4, 9, 7)]),
    "conv2d same": (nn.Conv2d(4, 6, 3, padding="same"), [(2, 4, 9, 7)]),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2), [(2, 4, 9, 7)]),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, groups=4, dilation=2), [(2, 4, 9, 7)]),
    "conv3d": (nn.Conv3d(2, 3, 2), [(1, 2, 4, 5, 3)]),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), [(2, 4, 5)]),
    "transposed 2d grouped": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), [(2, 4, 5, 3)]),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2), [(1, 2, 4, 5, 3)]),
    "mm": (Function(torch.mm), [(3, 4), (4, 5)]),
    "matmul broadcast": (Function(torch.matmul), [(2, 3, 4, 5), (5, 7)]),
    "bmm": (Function(torch.bmm), [(2, 3, 4), (2, 4, 5)]),
    "addmm": (Function(torch.addmm), [(5,), (3, 4), (4, 5)]),
    "baddbmm": (Function(torch.baddbmm), [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "tensordot": (Function(lambda a, b: torch.tensordot(a, b, dims=2)), [(3, 4, 5), (4, 5, 2)]),
    "einsum": (einsum("bti,oi->bto"), [(2, 3, 4), (5, 4)]),
    "einsum own sum first": (einsum("bij,kj->bk"), [(2, 3, 4), (5, 4)]),
    "einsum broadcast": (einsum("...ij,...jk->...ik"), [(2, 1, 3, 4), (6, 4, 5)]),
    "einsum one against many": (einsum("bi,bi,bo->o"), [(1, 4), (3, 4), (3, 5)]),
    "einsum last broadcast": (einsum("bi,bio->bo"), [(3, 4), (1, 4, 5)]),
    "einsum without arrow": (einsum("ij,jk"), [(3, 4), (4, 5)]),
    "einsum of three": (einsum("ab,bc,cd->ad"), [(2, 3), (3, 5), (5, 7)]),
    "einsum of four": (einsum("ab,bc,cd,de->ae"), [(2, 3), (3, 5), (5, 7), (7, 11)]),
    "attention": (Attention(is_causal=True), [(2, 4, 5, 8)] * 3),
    "attention, wide values": (Attention(), [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)]),
    "attention, grouped queries": (Attention(enable_gqa=True), [(2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)]),
    "multi-head attention": (SelfAttention(), [(2, 3, 6)]),
    "lstm": (nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True), [(2, 5, 4)]),
    "gru": (nn.GRU(4, 6), [(5, 2, 4)]),
    "rnn": (nn.RNN(4, 6, nonlinearity="relu"), [(5, 2, 4)]),
    "block": (Block(), [(2, 5, 8)]),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # export's remark on torch's own recurrent layers
@pytest.mark.parametrize("case", COUNTED)
def test_flops_agree_with_torch(case, graph_of):
    model, shapes = COUNTED[case]
    model = model.double()  # in float32 oneDNN runs a whole LSTM as one call, which torch's counter does not see into
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*inputs)
    assert counter.get_total_flops() > 0
    assert count_macs(graph_of(model, *inputs)).flops == counter.get_total_flops()


BY_HAND = {
    "grouped conv: 6x7x5 outputs of 2x3x3": (nn.Conv2d(4, 6, 3, groups=2), [(1, 4, 9, 7)], 6 * 7 * 5 * 18),
    "mv": (Function(torch.mv), [(3, 4), (4,)], 12),
    "dot": (Function(torch.dot), [(7,), (7,)], 7),
    "inner": (Function(torch.inner), [(2, 4), (3, 4)], 24),
    "addmv": (Function(torch.addmv), [(3,), (3, 4), (4,)], 12),
    "addbmm": (Function(torch.addbmm), [(3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
    "conv_tbc": (Function(torch.conv_tbc), [(7, 2, 3), (2, 3, 5), (5,)], 6 * 2 * 5 * 2 * 3),
    "lstm cell: four gates from 3 inputs and 5 states": (nn.LSTMCell(3, 5), [(2, 3)], 2 * 4 * 5 * (3 + 5)),
    "lstm with projection": (nn.LSTM(4, 6, proj_size=3), [(5, 2, 4)], 10 * (24 * 4 + 24 * 3 + 3 * 6)),
    "attention without batch": (Attention(), [(5, 8), (7, 8), (7, 3)], 5 * 7 * (8 + 3)),
    "bilinear: 2x5 outputs of 3x4, then 4": (nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], 2 * 5 * (3 * 4 + 4)),
    "einsum sums first what one operand spans alone": (einsum("ab,cb->ac"), [(2, 1), (3, 4)], 0),
    "outer product": (einsum("i,j->ij"), [(3,), (4,)], 0),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:LSTM with projections")
@pytest.mark.parametrize("case", BY_HAND)
def test_formulas_by_hand(case, graph_of):
    model, shapes, macs = BY_HAND[case]
    assert count_macs(graph_of(model, *map(torch.randn, shapes))).total == macs


def test_einsum_follows_its_path():
    shapes = [(2, 3), (3, 5), (5, 7)]
    assert [*contractions("ab,bc,cd->ad", shapes, path=[1, 2, 0, 1])] == [(3 * 5 * 7, (1, 2)), (2 * 3 * 7, (0, 1, 2))]


def test_packed_sequences_count_real_steps_alone():
    graph = fx.Graph()
    data = graph.placeholder("data")
    data.meta["fact"] = Fact((7, 4), torch.float32)
    weights = [graph.get_attr(name) for name in ("weight_ih", "weight_hh", "bias_ih")]
    for weight, shape in zip(weights, [(18, 4), (18, 6), (18,)], strict=True):
        weight.meta["fact"] = Fact(shape, torch.float32)
    gru = graph.call_function(torch.ops.aten.gru.data, (data, data, data, weights, True, 1, 0.0, False, False))
    gru.meta["fact"] = [Fact((7, 6), torch.float32), Fact((1, 3, 6), torch.float32)]
    assert count_macs(graph).by_weight == {"weight_ih": 7 * 18 * 4, "weight_hh": 7 * 18 * 6}


def test_fused_encoder_layer_counts_as_its_parts(graph_of):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    attention, norms = layer.self_attn, (layer.norm1, layer.norm2)
    weights = [attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias]
    tail = [layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias]

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            scales = [getattr(norm, name) for norm in norms for name in ("weight", "bias")]
            return torch._transformer_encoder_layer_fwd(x, 8, 2, *weights, False, False, 1e-5, *scales, *tail)

    x = torch.randn(2, 5, 8)
    assert count_macs(graph_of(Fused(), x)).total == count_macs(graph_of(layer, x)).total == 10 * (4 * 64 + 2 * 5 * 8 + 2 * 128)


@pytest.mark.parametrize(
    ("left", "right", "offsets", "macs"),
    [((6, 8), (2, 8, 16), [4, 6], 6 * 8 * 16), ((8, 6), (6, 16), [4, 6], 8 * 6 * 16), ((2, 4, 8), (2, 8, 16), None, 2 * 4 * 8 * 16)],
)
def test_grouped_matmul_counts_each_row_in_its_own_group(left, right, offsets, macs):
    graph = fx.Graph()
    operands = [graph.placeholder("left"), graph.placeholder("right")]
    for operand, shape in zip(operands, (left, right), strict=True):
        operand.meta["fact"] = Fact(shape, torch.bfloat16)
    groups = len(offsets or (0, 0))
    call = graph.call_function(torch.ops.aten._grouped_mm.default, tuple(operands))
    call.meta["fact"] = Fact((left[0], right[2]) if offsets and len(right) == 3 else (groups, left[-2], right[-1]), torch.bfloat16)
    assert count_macs(graph).total == macs


def test_grouped_matmul_of_another_library_counts_alike():
    pytest.importorskip("transformers.integrations.moe")
    graph = fx.Graph()
    operands = [graph.placeholder(name) for name in ("rows", "weights", "ends")]
    for operand, shape in zip(operands, ((6, 8), (3, 8, 16), (3,)), strict=True):
        operand.meta["fact"] = Fact(shape, torch.float32)
    call = graph.call_function(torch.ops.transformers.grouped_mm_fallback.default, tuple(operands))
    call.meta["fact"] = Fact((6, 16), torch.float32)
    assert count_macs(graph).total == 6 * 8 * 16


def test_weights_and_products_are_told_apart(graph_of):
    count = count_macs(graph_of(Block(), torch.randn(2, 5, 8)))
    assert count.by_weight == {"qkv.weight": 10 * 8 * 24, "out.weight": 10 * 8 * 8}
    assert count.by_product == {"inner.scaled_dot_product_attention": 2 * 2 * 5 * 5 * (4 + 4)}
    assert count.by_layer == {"qkv": 1920, "out": 640, "inner.scaled_dot_product_attention": 800}
    assert count.total == 1920 + 640 + 800 == sum(count.by_node.values())


def test_a_weight_is_found_behind_views_and_elementwise_work(graph_of):
    model = Function(lambda x, gain, weight: x @ (gain * weight.tanh()).mT.reshape(4, 6), gain=(1, 4), weight=(6, 4))
    assert count_macs(graph_of(model, torch.randn(3, 4))).by_weight == {"weight": 3 * 4 * 6}


def test_what_a_product_makes_is_no_weight(graph_of):
    model = Function(lambda x, a, b: x @ (a @ b), a=(4, 2), b=(2, 6))
    count = count_macs(graph_of(model, torch.randn(3, 4)))
    assert (count.by_weight, count.by_product) == ({"b": 4 * 2 * 6}, {"matmul": 3 * 4 * 6})


def test_a_layer_used_twice_counts_twice(graph_of):
    layer = nn.Linear(4, 4, bias=False)
    count = count_macs(graph_of(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 4)))
    assert [*count.by_weight.values()] == [32]


def test_arithmetic_that_is_not_counted_is_listed(graph_of):
    def several(x):
        y = F.relu(F.relu_(x + 1).view(2, 8).t().contiguous().t())
        return torch.cat([y[:, :4], F.layer_norm(y, (8,))], 1).softmax(-1), torch.einsum("i,j->ij", y[0], y[1])

    count = count_macs(graph_of(Function(several), torch.randn(4, 4)))
    assert count.not_counted == {"add": 1, "einsum": 1, "layer_norm": 1, "relu": 2, "softmax": 1}
    assert count.total == 0


def test_a_count_is_json(graph_of):
    count = count_macs(graph_of(Block(), torch.randn(2, 5, 8)))
    assert json.loads(json.dumps(count.to_json()))["by_weight"] == count.by_weight


def test_a_second_formula_for_an_operator_is_refused():
    with pytest.raises(ValueError, match="linear has a formula already"):
        counts("linear")(lambda call: iter(()))
