"""At full rank every method computes what the layer computes."""

import itertools

import pytest
import torch
from torch import nn

from secateur.decompose import CP, SVD, Cost, SpatialSVD, Tucker, decompose
from secateur.decompose.spec import LayerSpec, Refusal, build, cost, read_spec, to_kernel, to_weight
from secateur.errors import SelectionError

METHODS = [Tucker(keep_full=True), Tucker(), CP(), CP(separable=False), SpatialSVD(), SVD(), SVD(balance=False)]
CONVOLUTIONS = {
    (False, 1): nn.Conv1d,
    (False, 2): nn.Conv2d,
    (False, 3): nn.Conv3d,
    (True, 1): nn.ConvTranspose1d,
    (True, 2): nn.ConvTranspose2d,
    (True, 3): nn.ConvTranspose3d,
}


def settings():
    """Every stride, dilation, padding (mode) and number of groups, in one to three dimensions, plain and transposed."""
    for axes, stride, dilation, groups in itertools.product((1, 2, 3), (1, 2), (1, 2), (1, 2)):
        for padding, mode in (
            (0, "zeros"),
            (2, "zeros"),
            (2, "reflect"),
            (1, "replicate"),
            (1, "circular"),
            ("same", "zeros"),
            ("valid", "zeros"),
        ):
            if not (padding == "same" and stride > 1):
                yield axes, False, {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding, "padding_mode": mode}
        for padding, extra in ((0, 0), (1, stride - 1)):
            yield axes, True, {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding, "output_padding": extra}


def layer_and_input(axes, transposed, extent, options, *, bias=True):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[transposed, axes](4, 6, extent, bias=bias, dtype=torch.float64, **options)
    return layer, torch.randn(2, 4, *(7, 9, 6)[:axes], dtype=torch.float64)


def assert_same(layer, method, inputs):
    spec = read_spec(layer)
    found = decompose(layer, method, method.limits(spec), accept_dearer=True)
    torch.testing.assert_close(found.module(inputs), layer(inputs), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.weight, layer.weight.detach(), rtol=0, atol=1e-10)
    assert found.relative_error < 1e-12
    size = inputs.shape[2:]
    assert spec.output_size(size) == layer(inputs).shape[2:]
    assert cost(list(method.layers(spec, found.rank).values()), size).params == sum(p.numel() for p in found.module.parameters())


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_full_rank_reproduces_the_layer(method, axes):
    extent = ((3,), (3, 5), (1, 3, 3))[axes - 1]
    tried = 0
    for dims, transposed, options in settings():
        layer, inputs = layer_and_input(axes, transposed, (1,) * axes if isinstance(method, SVD) else extent, options)
        if dims == axes and method.obstacle(read_spec(layer)) is None:
            assert_same(layer, method, inputs)
            tried += 1
    assert tried == (0 if isinstance(method, SpatialSVD) and axes == 1 else 68)


@pytest.mark.parametrize("method", [Tucker(), CP(), SpatialSVD()], ids=repr)
@pytest.mark.parametrize("extent", [(1, 3), (3, 1), (5, 3)])
def test_flat_extents_keep_their_stride_and_padding(method, extent):
    layer, inputs = layer_and_input(2, False, extent, {"stride": (2, 3), "padding": (1, 2), "dilation": (1, 2)}, bias=False)
    if method.obstacle(read_spec(layer)) is None:
        assert_same(layer, method, inputs)
    else:
        assert isinstance(method, SpatialSVD)
        assert 1 in extent


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 9), (9, 5)])
@pytest.mark.parametrize("balance", [True, False])
def test_full_rank_reproduces_a_linear_layer(inputs, outputs, balance):
    layer = nn.Linear(inputs, outputs, dtype=torch.float64)
    found = decompose(layer, SVD(balance=balance), 5, accept_dearer=True)
    x = torch.randn(3, 2, inputs, dtype=torch.float64)
    torch.testing.assert_close(found.module(x), layer(x), rtol=0, atol=1e-12)
    assert [type(part) for part in found.module] == [nn.Linear, nn.Linear]


def test_layers_bear_the_names_of_their_roles():
    layer = nn.Conv2d(16, 16, 3, padding=1, stride=2)
    tucker = decompose(layer, Tucker(), (3, 4)).module
    assert {name: tuple(part.weight.shape) for name, part in tucker.named_children()} == {
        "reduce": (3, 16, 1, 1),
        "core": (4, 3, 3, 3),
        "expand": (16, 4, 1, 1),
    }
    assert (tucker.core.stride, tucker.core.padding) == ((2, 2), (1, 1))
    assert [part.bias is None for part in tucker] == [True, True, False]
    cp = decompose(layer, CP(), 5).module
    assert {name: tuple(part.weight.shape) for name, part in cp.named_children()} == {
        "reduce": (5, 16, 1, 1),
        "depthwise0": (5, 1, 3, 1),
        "depthwise1": (5, 1, 1, 3),
        "expand": (16, 5, 1, 1),
    }
    assert [name for name, _ in decompose(layer, CP(separable=False), 5).module.named_children()] == ["reduce", "depthwise0", "expand"]
    assert [name for name, _ in decompose(layer, Tucker(), (16, 4)).module.named_children()] == ["core", "expand"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_stays_and_the_recomposed_weight_is_that_of_the_stored_factors(dtype):
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 12, 3, dtype=dtype).eval().requires_grad_(False)
    found = decompose(layer, CP(), 6)
    assert {parameter.dtype for parameter in found.module.parameters()} == {dtype}
    assert not found.module.training
    assert not any(parameter.requires_grad for parameter in found.module.parameters())
    x = torch.randn(1, 12, 8, 8, dtype=torch.float64)
    expected = nn.functional.conv2d(x, found.weight, found.bias)
    torch.testing.assert_close(found.module.double()(x), expected, rtol=0, atol=1e-12)


def test_costs_are_counted_by_hand():
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    found = decompose(layer, Tucker(), (2, 3), size=(10, 10))
    assert found.before == Cost(params=8 * 12 * 9 + 12, macs=5 * 5 * 8 * 12 * 9)
    assert found.after == Cost(params=8 * 2 + 2 * 3 * 9 + 3 * 12 + 12, macs=100 * 8 * 2 + 25 * (2 * 3 * 9 + 3 * 12))
    assert found.macs_ratio == found.after.macs / found.before.macs
    assert found.params_ratio == found.after.params / found.before.params
    transposed = LayerSpec(4, 6, (3,), (2,), (0,), (1,), (0,), transposed=True)
    assert cost([transposed], (5,)) == Cost(params=72, macs=5 * 72)


@pytest.mark.parametrize(
    ("layer", "method", "rank", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), Tucker(), 1, "depthwise"),
        (nn.Conv2d(1, 8, 3), Tucker(), 1, "single input or output"),
        (nn.Conv2d(8, 8, 1), Tucker(), 4, "use svd"),
        (nn.Conv2d(8, 8, 1), CP(), 4, "use svd"),
        (nn.Conv2d(8, 8, 3), SVD(), 4, "spans 9 taps"),
        (nn.Conv1d(8, 8, 3), SpatialSVD(), 4, "fewer than two axes"),
        (nn.Linear(8, 8), SVD(), 0, "outside 1 to 8"),
        (nn.Linear(8, 8), SVD(), 9, "outside 1 to 8"),
        (nn.Linear(8, 8), SVD(), (2, 2), "outside 1 to 8"),
        (nn.Linear(8, 8), SVD(), 4, "dearer: MACs 64 -> 64"),
        (nn.Linear(8, 8).requires_grad_(False).apply(lambda m: m.weight.fill_(torch.nan)), SVD(), 2, "not finite"),
        (nn.BatchNorm2d(8), SVD(), 2, "neither a linear nor a convolution"),
    ],
)
def test_refusals_carry_their_reason(layer, method, rank, reason):
    with pytest.raises(SelectionError, match=reason):
        decompose(layer, method, rank)


def test_a_spec_builds_the_layer_that_it_was_read_from():
    for axes, transposed, options in itertools.islice(settings(), 0, None, 5):
        layer, inputs = layer_and_input(axes, transposed, (3, 3, 1)[:axes], options)
        spec = read_spec(layer)
        assert not isinstance(spec, Refusal)
        kernel = to_kernel(layer.weight, spec)
        assert kernel.shape[:3] == (spec.groups, 6 // spec.groups, 4 // spec.groups)
        torch.testing.assert_close(to_weight(kernel, spec), layer.weight, rtol=0, atol=0)
        torch.testing.assert_close(build(spec, kernel, layer.bias)(inputs), layer(inputs), rtol=0, atol=0)
