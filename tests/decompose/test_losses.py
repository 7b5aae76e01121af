"""What a model's outputs lose by given changes of its layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.decompose import Change, Metric, gather_losses, gather_slopes, moments_of
from secateur.decompose.spec import LayerSpec, read_spec, to_kernel
from secateur.errors import SelectionError


class Pooled(nn.Module):
    """Linear in everything, and the mean over positions: errors at all of them add up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64), nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def smooth(samples: int) -> Tensor:
    """Images whose positions are much alike."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(samples, 4, 1, 1, generator=generator, dtype=torch.float64)
    return whole + 0.3 * torch.randn(samples, 4, 6, 6, generator=generator, dtype=torch.float64) + 1


def kernel_of(layer: nn.Module) -> Tensor:
    spec = read_spec(layer)
    assert isinstance(spec, LayerSpec)
    assert isinstance(layer.weight, Tensor)
    return to_kernel(layer.weight.detach(), spec)


@torch.no_grad()
def lost(model: nn.Module, layer: nn.Module, kernel: Tensor, x: Tensor) -> float:
    """The part of the variance of the outputs that is lost once the bias has taken up the mean."""
    before = model(x)
    assert isinstance(layer.weight, Tensor)
    layer.weight += kernel[0]
    moved = model(x) - before
    layer.weight -= kernel[0]
    return float((moved - moved.mean(0)).square().mean() / (before - before.mean(0)).square().mean())


def _whitened(kernel: Tensor, metric: Metric) -> Tensor:
    assert metric.patch is not None
    return (kernel.flatten(2) @ torch.linalg.cholesky(metric.patch)).reshape(kernel.shape)


@pytest.mark.parametrize("batch", [4000, 50])
def test_errors_that_add_up_over_positions_are_told_as_they_are(batch: int) -> None:
    torch.manual_seed(0)
    model, x = Pooled(), smooth(4000)
    kernel = 0.1 * torch.randn_like(kernel_of(model.conv))
    metric = Metric.of(moments_of(model.conv, x, patch_limit=100), read_spec(model.conv), centred=True)
    found = gather_losses(model, {"change": {"conv": Change.of(kernel, metric)}}, x.split(batch))
    true = lost(model, model.conv, kernel, x)
    assert found["change"].whole == pytest.approx(true, rel=0.1)
    assert found["change"].independent < 0.2 * true
    slopes = gather_slopes(model, ["conv"], x.split(batch))["conv"]
    exact = torch.einsum("goihw,gpihw,gop->", *(_whitened(kernel, metric),) * 2, slopes.outer / slopes.samples)
    assert found["change"].independent == pytest.approx(float(exact), rel=0.05)


def test_the_spread_of_the_outputs_is_that_of_all_batches() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(600, 5)
    whole, pairs = (gather_slopes(model, ["0"], x.split(size))["0"].outer for size in (600, 2))
    # Of single pairs it would be half, and by chance nearly none.
    torch.testing.assert_close(pairs, whole, rtol=0.25, atol=float(whole.abs().max()) / 8)


def test_changes_of_several_layers_meet_before_they_are_squared() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) - self.two(x)

    torch.manual_seed(0)
    model, x = Difference(), torch.randn(64, 5)
    change, half = (Change(scale * torch.ones(1, 3, 5), torch.zeros(3)) for scale in (1.0, 0.5))
    changes = {"one": {"one": change}, "none": {"one": change, "two": change}, "half": {"one": change, "two": half}}
    found = gather_losses(model, changes, [x[:32], x[32:]])
    assert set(found) == {"one", "half"}
    assert found["half"].whole == pytest.approx(found["one"].whole / 4, rel=1e-5)


def test_a_layer_that_is_called_twice_loses_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.layer(input=x)

    torch.manual_seed(0)
    twice, x = Twice(), torch.randn(64, 5)
    once = nn.Sequential(nn.Linear(5, 5, bias=False))
    once[0].weight = twice.layer.weight
    change = Change(torch.randn(1, 5, 5), torch.zeros(5))
    found = gather_losses(twice, {"": {"layer": change}}, [x]), gather_losses(once, {"": {"0": change}}, [x])
    # As a part of the outputs, which are twice as large.
    assert found[0][""].whole == pytest.approx(found[1][""].whole, rel=1e-5)


class Folded(nn.Module):
    """Folds the parts of a sample into the first dimension, and adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.layer(x.reshape(-1, 6)) + self.idle(x.reshape(-1, 6)).detach()
        return parts.reshape(len(x), -1).sum(1, keepdim=True)


def test_parts_of_a_sample_count_together() -> None:
    torch.manual_seed(0)
    model, x = Folded(), torch.randn(24, 4, 6)
    change = {"": {"layer": Change(torch.ones(1, 6, 6), torch.zeros(6))}}
    found = [gather_losses(model, change, [x], seed=seed)[""].whole for seed in range(200)]
    moved = 6 * x.sum((1, 2))
    assert sum(found) / 200 == pytest.approx(float(moved.square().mean() / model(x).detach().var(correction=0)), rel=0.1)


def test_what_no_derivative_reaches_has_no_loss() -> None:
    change = Change(torch.ones(1, 6, 6), torch.zeros(6))
    assert set(gather_losses(Folded(), {"a": {"layer": change}, "b": {"idle": change}}, [torch.randn(4, 2, 6)])) == {"a"}


def test_a_layer_whose_first_dimension_is_none_of_samples_has_no_loss() -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).sum(0)

    assert gather_losses(Across(), {"": {"layer": Change(torch.ones(1, 2, 6), torch.zeros(2))}}, [torch.randn(3, 6)]) == {}


def test_what_is_no_layer_is_refused() -> None:
    change = Change(torch.ones(1, 4, 4), torch.zeros(4))
    with pytest.raises(SelectionError, match="no losses for layer 1"):
        gather_losses(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), {"": {"1": change}}, [torch.ones(2, 4)])
