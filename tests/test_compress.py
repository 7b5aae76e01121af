"""All in one call: prune, factorize, or both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.decompose import ByRatio, SpatialSVD
from secateur.errors import SelectionError
from secateur.pipeline import compress
from secateur.plan import Factorize, Prune
from secateur.study.wish import Decompose
from secateur.target import Target

PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Linear(16 * 16, 4))
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 3), nn.ReLU(), *head).eval()


def test_factorizing_alone_takes_half_of_the_macs() -> None:
    result = compress(network(), PIXELS, decompose=Decompose(SpatialSVD()), latency=False, seed=3)
    assert {type(edit) for edit in result.plan.edits} == {Factorize}
    assert 0.4 < result.after.macs / result.before.macs <= 0.5
    assert result.plan.settings["seed"] == 3


def test_channels_go_before_layers_are_factorized() -> None:
    result = compress(network(), PIXELS, ratio=0.25, decompose=Decompose(), target=Target(macs=0.4), latency=False)
    assert [type(edit) for edit in result.plan.edits] == [Prune, Prune, Factorize]
    assert result.after.macs <= 0.4 * result.before.macs
    assert result.proof.holds
    assert len(result.proof.trials) == 4


def test_data_serve_the_ranks_the_factors_and_the_statistics() -> None:
    data = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    result = compress(network(), PIXELS, decompose=Decompose(rank=ByRatio(0.3)), data=iter(data), latency=False)
    assert {row.fit for row in result.factorized} == {"inputs"}
    assert not torch.equal(result.model[1].running_mean, network()[1].running_mean)


def test_a_rank_and_a_target_exclude_each_other() -> None:
    with pytest.raises(SelectionError, match="not both"):
        compress(network(), PIXELS, decompose=Decompose(rank=2), target=Target(macs=0.5))
