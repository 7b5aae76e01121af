"""How much a model's outputs depend on a layer's, and factors that are fitted for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.decompose import CP, SVD, ErrorCurve, Slopes, SpatialSVD, Tucker, decompose, error_curve, gather_slopes, moments_of
from secateur.errors import ModelError


def outer(*columns: list[float]) -> Tensor:
    return sum((torch.tensor(c, dtype=torch.float64).outer(torch.tensor(c, dtype=torch.float64)) for c in columns), torch.zeros(()))


class Scaled(nn.Module):
    """Writes into the outputs of its layer, which count 6, 2 and 0, and adds up two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y *= 2
        return (y * torch.tensor([3.0, 1.0, 0.0])).sum((1, 2)).unsqueeze(1) + self.idle(x).mean().detach()


def test_slopes_of_a_sum_are_known_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(400, 2, 5)
    found = gather_slopes(model, ["layer", "idle"], [x[:200], x[200:]])
    assert list(found) == ["layer"]
    assert found["layer"].samples == 400
    mean = found["layer"].outer[0] / 400
    # Two positions, each with the slopes (6, 2, 0), in units of the spread of the outputs.
    spread = float(torch.stack([model(part).detach().var(correction=0) for part in x.split(200)]).mean())
    torch.testing.assert_close(mean, 2 * outer([6.0, 2.0, 0.0]) / spread, rtol=0.2, atol=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not model.layer._forward_hooks


def test_slopes_of_groups_and_positions_lie_by_group() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten())
    found = gather_slopes(model, ["0"], [torch.randn(64, 4, 5, 5)])["0"]
    assert found.outer.shape == (2, 3, 3)
    spread = model(torch.randn(512, 4, 5, 5)).detach()
    expected = 9 / float((spread - spread.mean(0)).square().mean()) / 54
    unit = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    torch.testing.assert_close(found.outer / 64, expected * unit, rtol=0.4, atol=0.4 * expected)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_slopes_of_very_small_and_very_large_outputs_are_finite(scale: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(50, 5)
    usual = gather_slopes(model, ["0"], [x])["0"].outer
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
    torch.testing.assert_close(gather_slopes(model, ["0"], [x])["0"].outer * scale**2, usual, rtol=1e-4, atol=1e-4)


def test_samples_that_are_all_the_same_have_slopes_as_others_do() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(1, 5)
    found = gather_slopes(model, ["0"], [x.expand(8, -1)])["0"]
    assert 0 < float(found.outer.abs().max()) < 1e3 * float(found.samples / model(x).detach().square().mean())


def test_layers_that_no_finite_derivative_reaches_are_left_out() -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).abs().sqrt()

    assert gather_slopes(Rooted(), ["layer"], [torch.zeros(2, 4)]) == {}


def test_slopes_add_up() -> None:
    one, other = Slopes(2, torch.ones(1, 2, 2)), Slopes(3, 2 * torch.ones(1, 2, 2))
    assert (one + other).samples == 5
    assert torch.equal((one + other).outer, 3 * torch.ones(1, 2, 2))


def test_the_root_is_that_of_slopes_drawn_to_independence_and_inverts_even_without_any() -> None:
    root, inverse = Slopes(2, 2 * outer([3.0, 1.0, 0.0])[None]).root()
    expected = torch.tensor([[9.0, 2.7, 0.0], [2.7, 1.0, 0.0], [0.0, 0.0, 0.1 * 1e-4 * 10 / 3]], dtype=torch.float64)
    torch.testing.assert_close((root @ root.mT)[0], expected)
    torch.testing.assert_close((root @ inverse)[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(Slopes(2, torch.zeros(1, 2, 2)).unit_root(), (torch.eye(2)[None], torch.eye(2)[None]))


def layer_and_slopes() -> tuple[nn.Conv2d, Slopes, Tensor]:
    torch.manual_seed(3)
    layer = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
    mix = torch.randn(8, 8, dtype=torch.float64) * torch.arange(8, dtype=torch.float64)
    return layer, Slopes(1, (mix @ mix.T)[None]), torch.randn(16, 6, 7, 7, dtype=torch.float64)


def loss(layer: nn.Module, factors: nn.Module, slopes: Slopes, x: Tensor) -> float:
    lost = (layer(x) - factors(x)).detach().movedim(1, -1).flatten(0, -2)
    return float(((lost @ slopes.outer[0]) * lost).sum())


@pytest.mark.parametrize(("method", "rank"), [(Tucker(), (3, 3)), (CP(), (8,)), (SpatialSVD(), (6,))], ids=str)
def test_factors_fitted_for_the_models_outputs_lose_less_of_them(method: Tucker, rank: tuple[int, ...]) -> None:
    layer, slopes, x = layer_and_slopes()
    moments = moments_of(layer, x, patch_limit=100)
    plain, weighted = (decompose(layer, method, rank, moments=moments, slopes=each, accept_dearer=True).module for each in (None, slopes))
    assert loss(layer, weighted, slopes, x) < 0.9 * loss(layer, plain, slopes, x)


@pytest.mark.parametrize("method", [Tucker(), CP(), SpatialSVD()], ids=str)
def test_full_rank_reproduces_the_layer_whatever_counts(method: Tucker) -> None:
    layer, slopes, x = layer_and_slopes()
    limits = (54,) if isinstance(method, CP) else (18,) if isinstance(method, SpatialSVD) else (6, 8)
    found = decompose(layer, method, limits, slopes=slopes, accept_dearer=True).module
    torch.testing.assert_close(found(x), layer(x), rtol=0, atol=1e-9)


def test_the_weighted_error_of_a_curve_is_what_the_models_outputs_lose() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 10, dtype=torch.float64), torch.randn(500, 12, dtype=torch.float64)
    mix = torch.randn(10, 10, dtype=torch.float64)
    # Drawn to independence beforehand, the rounding towards the diagonal changes nothing.
    slopes = Slopes(1, torch.diag_embed((mix @ mix.T).diagonal())[None])
    moments = moments_of(layer, x)
    curve = error_curve(layer, SVD(), moments=moments, slopes=slopes)
    assert isinstance(curve, ErrorCurve)
    for rank, error in zip(curve.ranks[:-1], curve.errors, strict=False):
        factors = decompose(layer, SVD(), rank, moments=moments, slopes=slopes).module
        assert error == pytest.approx(loss(layer, factors, slopes, x) / 500, rel=1e-6)
    assert curve.whole == pytest.approx(loss(layer, lambda _: layer(x).mean(0), slopes, x) / 500, rel=1e-6)


def test_a_model_without_derivatives_is_told() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x).exp()
            y += 1
            return y

    with pytest.raises(ModelError, match="cannot be differentiated"):
        gather_slopes(Stubborn(), ["layer"], [torch.randn(2, 4)])
