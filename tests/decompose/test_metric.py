"""Decomposition under the statistics of a layer's inputs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.decompose import CP, SVD, SpatialSVD, Tucker, decompose, error_curve, gather_moments, gather_paired, moments_of
from secateur.decompose.metric import Metric
from secateur.decompose.spec import read_spec, to_kernel
from secateur.errors import SelectionError

QUICK = CP(starts=1, sweeps=60, tolerance=1e-4)
OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": "same"},
    {"padding": "same"},
    {"padding": (2, 1), "padding_mode": "reflect"},
    {"groups": 2, "padding": 1, "padding_mode": "circular"},
]


def correlated(*shape, seed=0):
    """Inputs whose channels (dimension 1) are correlated, of unequal variance, and not centred."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64) * torch.logspace(
        0, -2, shape[1], dtype=torch.float64
    )
    raw = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.7
    return torch.einsum("bc...,dc->bd...", raw, mixing)


def rms(tensor):
    return float(tensor.square().mean().sqrt())


def test_moments_of_a_linear_layer_are_those_of_its_inputs():
    x = correlated(50, 6)
    moments = moments_of(nn.Linear(6, 3, dtype=torch.float64), x.reshape(5, 10, 6))
    assert moments.count == 50
    torch.testing.assert_close(moments.mean[0], x.mean(0))
    torch.testing.assert_close(moments.covariance(centred=True)[0], torch.cov(x.mT, correction=0))
    torch.testing.assert_close(moments.covariance(centred=False)[0], x.mT @ x / 50)


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), nn.Conv1d(6, 3, 1)], ids=str)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_moments_of_very_small_and_very_large_inputs_are_finite(layer, scale):
    x = correlated(50, 6).float()
    x = x if isinstance(layer, nn.Linear) else x.unsqueeze(-1)
    usual, found = moments_of(layer, x), moments_of(layer, x * scale)
    torch.testing.assert_close(found.total / scale, usual.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.outer / scale**2, usual.outer, rtol=1e-5, atol=1e-5)


def test_inputs_that_are_not_finite_are_told():
    with pytest.raises(SelectionError, match="inputs of layer 1 are not all finite"):
        gather_moments(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), ["1"], [torch.full((2, 4), torch.inf)])


def test_moments_add_up():
    x, layer = correlated(8, 4, 6, 6), nn.Conv2d(4, 4, 3, dtype=torch.float64)
    whole, parts = moments_of(layer, x), moments_of(layer, x[:3]) + moments_of(layer, x[3:])
    assert whole.count == parts.count
    torch.testing.assert_close(whole.outer, parts.outer)
    torch.testing.assert_close(whole.total, parts.total)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_patch_moments_measure_the_output_exactly(options):
    layer = nn.Conv2d(4, 6, (3, 2), dtype=torch.float64, **options)
    x = correlated(5, 4, 8, 9)
    metric = Metric.of(moments_of(layer, x, patch_limit=100), read_spec(layer), centred=False)
    output = layer(x) - layer.bias.reshape(-1, 1, 1)
    kernel = to_kernel(layer.weight.detach(), read_spec(layer))
    positions = output.numel() // 6
    assert metric.norm(kernel) == pytest.approx(float(output.detach().norm()) / positions**0.5)
    torch.testing.assert_close(metric.mean_output(kernel), output.detach().mean((0, 2, 3)))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"padding": 1}], ids=str)
def test_moments_of_a_pointwise_convolution_measure_its_output_exactly(options):
    layer = nn.Conv1d(4, 6, 1, dtype=torch.float64, **options)
    x = correlated(5, 4, 9)
    metric = Metric.of(moments_of(layer, x), read_spec(layer), centred=False)
    output = (layer(x) - layer.bias.reshape(-1, 1)).detach()
    assert metric.norm(to_kernel(layer.weight.detach(), read_spec(layer))) == pytest.approx(rms(output) * 6**0.5)


@pytest.mark.parametrize("layer", [nn.Linear(10, 16), nn.Linear(16, 10), nn.Conv2d(12, 16, 1, stride=2, groups=2)], ids=str)
def test_the_whitened_error_is_the_tail_of_the_whitened_spectrum(layer):
    layer = layer.double()
    x = correlated(400, layer.weight.shape[1]) if isinstance(layer, nn.Linear) else correlated(9, 12, 8, 8)
    moments = moments_of(layer, x)
    found = decompose(layer, SVD(), 4, moments=moments, accept_dearer=True)
    lost = (layer(x) - found.module(x)).detach().movedim(1, -1).flatten(0, -2)
    squares = decompose(layer, SVD(), 4, accept_dearer=True).weight  # the plain one, for comparison
    spec = read_spec(layer)
    root = Metric.of(moments, spec, centred=True).root()[0]
    values = torch.linalg.svdvals(to_kernel(layer.weight.detach(), spec).flatten(2) @ root)
    tail = float(values[:, 4:].norm())
    assert float(lost.norm()) / lost.shape[0] ** 0.5 == pytest.approx(tail, rel=1e-6)
    assert found.output_error == pytest.approx(tail / float(values.norm()), rel=1e-6)
    torch.testing.assert_close(lost.mean(0), torch.zeros_like(lost[0]), rtol=0, atol=1e-9)
    assert Metric.of(moments, spec, centred=True).norm(to_kernel(layer.weight.detach() - squares, spec)) > 1.1 * tail
    curve = error_curve(layer, SVD(), moments=moments, of="params")
    if (4,) in curve.ranks:
        assert curve.errors[curve.ranks.index((4,))] == pytest.approx(found.output_error**2, rel=1e-6)


def test_a_deficient_covariance_still_gives_the_best_layer():
    layer = nn.Linear(12, 9, dtype=torch.float64)
    x = correlated(5, 12)  # fewer samples than inputs
    found = decompose(layer, SVD(), 4, moments=moments_of(layer, x), accept_dearer=True)
    torch.testing.assert_close(found.module(x), layer(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [Tucker(), QUICK, replace(QUICK, separable=False), SpatialSVD()], ids=repr)
@pytest.mark.parametrize("patch_limit", [0, 1000])
@pytest.mark.parametrize("transposed", [False, True])
def test_data_aware_factors_lose_less_of_the_output_than_plain_ones(method, patch_limit, transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(8, 10, 3, padding=1, stride=2, dtype=torch.float64)
    x = correlated(6, 8, 12, 12)
    moments = moments_of(layer, x, patch_limit=patch_limit)
    rank = (4, 5) if isinstance(method, Tucker) else 6
    aware, plain = (decompose(layer, method, rank, moments=given, accept_dearer=True) for given in (moments, None))
    lost = [rms((found.module(x) - layer(x)).detach()) for found in (aware, plain)]
    assert lost[0] < 0.8 * lost[1]


@pytest.mark.parametrize("method", [Tucker(), QUICK, SpatialSVD()], ids=lambda method: method.name)
def test_the_bias_takes_up_the_mean_of_what_is_lost(method):
    layer, x = nn.Conv2d(8, 10, 3, padding=1, stride=2, dtype=torch.float64), correlated(6, 8, 12, 12)
    found = decompose(layer, method, 4, moments=moments_of(layer, x, patch_limit=1000))
    torch.testing.assert_close(
        (layer(x) - found.module(x)).detach().mean((0, 2, 3)), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_without_patches_the_bias_takes_up_the_loss_at_a_constant_input(kind, stride):
    layer, x = kind(8, 10, 3, stride=stride, dtype=torch.float64), correlated(6, 8, 12, 12)
    found = decompose(layer, Tucker(), 4, moments=moments_of(layer, x))
    constant = x.mean((0, 2, 3)).reshape(1, 8, 1, 1).expand(1, 8, 20, 20)
    inside = (layer(constant) - found.module(constant)).detach()[..., 2:-3, 2:-3]
    inside = inside[..., : inside.shape[2] // 2 * 2, : inside.shape[3] // 2 * 2]
    torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(10, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [Tucker(), QUICK], ids=lambda method: method.name)
def test_patches_explain_more_than_channels(method):
    layer = nn.Conv2d(6, 8, 3, dtype=torch.float64)
    x = nn.functional.avg_pool2d(correlated(6, 6, 20, 20), 3, 1)  # neighbouring positions are alike
    rank = (3, 4) if isinstance(method, Tucker) else 4
    lost = []
    for patch_limit in (0, 100):
        found = decompose(layer, method, rank, moments=moments_of(layer, x, patch_limit=patch_limit))
        lost.append(rms((found.module(x) - layer(x)).detach()))
    assert lost[1] < 0.95 * lost[0]


def test_bias_is_corrected_only_on_request_and_made_where_missing():
    layer, x = nn.Linear(12, 9, bias=False, dtype=torch.float64), correlated(50, 12)
    moments = moments_of(layer, x)
    corrected, kept = (decompose(layer, SVD(), 2, moments=moments, correct_bias=correct) for correct in (True, False))
    assert kept.module.expand.bias is None
    assert kept.bias is None
    torch.testing.assert_close(corrected.bias, (layer(x) - nn.functional.linear(x, corrected.weight)).detach().mean(0))
    assert corrected.after.params == sum(p.numel() for p in corrected.module.parameters())
    assert rms((corrected.module(x) - layer(x)).detach()) < rms((kept.module(x) - layer(x)).detach())


@pytest.mark.parametrize("method", [Tucker(), CP(), SpatialSVD()], ids=repr)
def test_full_rank_reproduces_the_layer_under_a_metric_too(method):
    layer = nn.Conv2d(6, 8, 3, padding=1, groups=2, dtype=torch.float64)
    x = correlated(4, 6, 7, 7)
    for patch_limit in (0, 100):
        moments = moments_of(layer, x, patch_limit=patch_limit)
        found = decompose(layer, method, method.limits(read_spec(layer)), moments=moments, accept_dearer=True)
        torch.testing.assert_close(found.module(x), layer(x), rtol=0, atol=1e-7)


class Twice(nn.Module):
    """A model that calls one layer twice, once by keyword."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, dtype=torch.float64)
        self.drop = nn.Dropout(0.9)

    def forward(self, x, *, scale=1.0):
        return self.first(input=self.drop(self.first(x)) * scale)


def test_moments_are_gathered_at_every_call_and_leave_no_trace():
    model = Twice().train()
    x = correlated(10, 4)
    for batches in ([x[:4], x[4:]], [(x[:4],), [x[4:]]], [{"x": x, "scale": 1.0}]):
        moments = gather_moments(model, ["first"], batches)["first"]
        assert moments.count == 20
        torch.testing.assert_close(moments.total[0], x.sum(0) + model.first(x).detach().sum(0))
    assert model.training
    assert model.drop.training
    assert not model.first._forward_pre_hooks


def test_moments_of_the_wrong_layer_are_refused():
    moments = moments_of(nn.Linear(6, 3, dtype=torch.float64), correlated(9, 6))
    with pytest.raises(SelectionError, match="do not belong"):
        decompose(nn.Linear(7, 7), SVD(), 2, moments=moments)
    with pytest.raises(SelectionError, match="no input moments for layer drop"):
        gather_moments(Twice(), ["drop"], [])
    with pytest.raises(SelectionError, match="no input moments for ReLU"):
        moments_of(nn.ReLU(), torch.ones(2, 2))


@torch.no_grad()
@pytest.mark.parametrize(("patch_limit", "close"), [(0, 0.02), (100, 1e-9)])
def test_the_dense_models_outputs_are_restored_where_its_inputs_can_be_predicted(patch_limit, close):
    torch.manual_seed(0)
    mix, shift = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    before = nn.Conv2d(6, 6, 1, dtype=torch.float64)
    after = nn.Conv2d(6, 6, 1, dtype=torch.float64)
    after.weight.copy_((mix @ before.weight.flatten(1)).reshape(6, 6, 1, 1))
    after.bias.copy_(mix @ before.bias + shift)
    layer = nn.Conv2d(6, 5, 3, dtype=torch.float64)
    dense, compressed = nn.Sequential(before, layer), nn.Sequential(after, copy.deepcopy(layer))
    batches = [torch.randn(16, 6, 9, 9, dtype=torch.float64) for _ in range(3)]
    moments = gather_paired(dense, compressed, "1", batches, calls=1, patch_limit=patch_limit)
    found = decompose(layer, Tucker(), (6, 5), moments=moments, accept_dearer=True)
    compressed[1] = found.module
    want, have = dense(batches[0]), compressed(batches[0])
    missed = float((have - want).norm() / (want - want.mean((0, 2, 3), keepdim=True)).norm())
    assert missed < 0.2 < float((nn.Sequential(after, layer)(batches[0]) - want).norm() / want.norm())
    means = [torch.cat([model(x) for x in batches]).mean((0, 2, 3)) for model in (compressed, dense)]
    torch.testing.assert_close(*means, rtol=0, atol=close)
    assert (moments + moments).target_mean.equal(moments.target_mean)


def test_few_samples_do_not_look_like_few_directions():
    torch.manual_seed(0)
    layer, spread = nn.Linear(64, 32, bias=False), torch.logspace(0, -1, 64)
    few, many = torch.randn(20, 64) * spread, torch.randn(4000, 64) * spread
    seen = {name: moments_of(layer, x) for name, x in {"few": few, "many": many}.items()}
    bare = error_curve(layer, SVD(), moments=seen["few"])
    drawn = error_curve(layer, SVD(), moments=seen["few"].shrunk())
    assert bare.errors[bare.ranks.index((20,))] < 1e-6 < 0.05 < drawn.errors[drawn.ranks.index((20,))]
    errors = {
        name: float((decompose(layer, SVD(), 8, moments=moments).module(many) - layer(many)).detach().norm())
        for name, moments in {"bare": seen["few"], "shrunk": seen["few"].shrunk()}.items()
    }
    assert errors["shrunk"] < errors["bare"]
    torch.testing.assert_close(seen["many"].shrunk().outer, seen["many"].outer, rtol=0.2, atol=40)
    torch.testing.assert_close(seen["few"].shrunk().mean, seen["few"].mean, rtol=0, atol=0)


@pytest.mark.parametrize("method", [Tucker(), CP()], ids=str)
def test_inputs_that_never_vary_leave_factors_finite(method):
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(8, 8, 3), torch.zeros(4, 8, 5, 5)
    found = decompose(layer, method, 4, moments=moments_of(layer, inputs).shrunk(), accept_dearer=True)
    assert all(bool(parameter.isfinite().all()) for parameter in found.module.parameters())
    assert found.relative_error < 0.9
    torch.testing.assert_close(found.module(inputs), layer(inputs))
