"""Layers of every structure, from calibration data to the proof: fitted for what the model's outputs lose, and weighed against channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc


class Padded(nn.Conv2d):
    """Pads by itself, by as much as its settings say, as mobile networks ported from elsewhere do."""

    def forward(self, x: Tensor) -> Tensor:
        side = self.kernel_size[0] // 2
        return nn.functional.conv2d(nn.functional.pad(x, (side, side, side, side)), self.weight, self.bias, self.stride, 0, self.dilation)


class Tied(nn.Module):
    """A head that shares the embedding's weight, a layer that runs twice, and one of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.twice, self.one, self.head = nn.Embedding(40, 24), nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 40)
        self.head.weight, self.other = self.embedding.weight, self.one

    def forward(self, ids: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.twice(self.embedding(ids))))
        return self.head(torch.relu(self.other(torch.tanh(self.one(x)))))


def images(*extent: int) -> Tensor:
    return torch.randn(24, 4, *extent, generator=torch.Generator().manual_seed(0))


def padded() -> nn.Module:
    return nn.Sequential(Padded(4, 24, 3), nn.ReLU(), Padded(24, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1))


def transposed() -> nn.Module:
    up = nn.ConvTranspose2d(24, 16, 4, stride=2, padding=1)
    return nn.Sequential(nn.Conv2d(4, 24, 3, padding=1), nn.ReLU(), up, nn.ReLU(), nn.ConvTranspose2d(16, 12, 3, output_padding=0))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=2), nn.ReLU(), nn.Conv2d(32, 24, 1, groups=2))


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, (1, 3, 3)), nn.ReLU(), nn.Conv3d(16, 12, 1))


def signal() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 24, 5, padding="same"), nn.ReLU(), nn.Conv1d(24, 24, 3, dilation=2), nn.ReLU(), nn.Conv1d(24, 24, 3))


def deficient() -> nn.Module:
    """A layer of zeros, one of rank one, and channels that are dead."""
    model = nn.Sequential(nn.Conv2d(4, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.Conv2d(24, 12, 3))
    with torch.no_grad():
        model[0].weight[5:9], model[0].bias[5:9] = 0, -1
        model[2].weight.copy_(torch.randn(24, 1, 1, 1) * torch.randn(1, 24, 3, 3))
        model[4].weight.zero_()
    return model


NETWORKS = {
    "padded": (padded, images(8, 8)),
    "transposed": (transposed, images(5, 5)),
    "grouped": (grouped, images(8, 8)),
    "volume": (volume, images(4, 5, 5)),
    "signal": (signal, images(16)),
    "deficient": (deficient, images(10, 10)),
    "tied": (Tied, torch.randint(0, 40, (24, 5), generator=torch.Generator().manual_seed(0))),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, data = NETWORKS[name]
    return build().eval(), data


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fit", ["inputs", "sequential"])
def test_factors_of_every_structure_are_fitted_and_proven(name: str, fit: str, tmp_path: Path) -> None:
    model, data = built(name)
    found = sc.study(model, data[:2])
    plan = found.plan_decomposition(target=sc.Target(macs=0.75), data=data, fit=fit)
    result = sc.apply(found, plan, data=data)
    assert result.after.macs <= 0.75 * result.before.macs
    assert all(edit.weighted for edit in plan.factorizations)
    assert all(bool(p.isfinite().all()) for p in result.model.parameters())
    result.save(tmp_path / "out", onnx=False)
    again = sc.load(tmp_path / "out", into=built(name)[0])
    with torch.no_grad():
        torch.testing.assert_close(again(data[:2]), result.model(data[:2]))


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_and_factors_of_every_structure_share_a_budget(name: str) -> None:
    model, data = built(name)
    result = sc.compress(model, data[:2], target=sc.Target(macs=0.7), decompose=sc.Cheaper(), data=data, latency=False)
    assert result.after.macs <= 0.7 * result.before.macs
    with torch.no_grad():
        assert bool(result.model(data).isfinite().all())
        assert result.model(data).shape == model(data).shape


def test_a_layer_that_pads_by_itself_stays_unless_it_acts_as_its_base() -> None:
    model, data = built("padded")
    rows = sc.study(model, data[:2]).decomposable
    assert "overrides forward" in rows["0"].reason
    assert rows["2"].methods == ("svd",)


def test_what_is_shared_stays_shared() -> None:
    model, data = built("tied")
    found = sc.study(model, data[:2])
    assert "shared with" in found.decomposable["head"].reason
    result = sc.apply(found, found.plan_decomposition(rank=6, data=data), data=data)
    assert result.model.head.weight is result.model.embedding.weight
    assert result.model.one is result.model.other
    assert [type(part) for part in result.model.twice] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize("name", ["signal", "transposed"])
def test_half_precision_stays_and_is_fitted_in_double(name: str) -> None:
    model, data = built(name)
    half = model.to(torch.bfloat16)
    found = sc.study(half, data[:2].bfloat16())
    result = sc.apply(found, found.plan_decomposition(target=sc.Target(macs=0.75), data=data.bfloat16()), data=data.bfloat16())
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert all(row.output_error < 0.5 for row in result.factorized)
