"""All in one call: prune, factorize, or both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import secateur as sc
from secateur.decompose import ByRatio, SpatialSVD
from secateur.errors import SelectionError
from secateur.pipeline import compress, recovering
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


def test_what_a_cut_left_is_refitted_before_it_is_factorized() -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(128, 3, 8, 8)
    start = {"ratio": 0.4, "decompose": Decompose(sc.SpatialSVD(), rank=6), "data": x, "latency": False}
    refitted = sc.compress(model, x[:2], **start)
    assert any("recovered after the proof by refit" in note for note in refitted.notes)
    bare = sc.compress(model, x[:2], recover=sc.Nothing(), **start)
    with torch.no_grad():
        lost = [float((result.model(x) - model(x)).square().mean()) for result in (refitted, bare)]
    assert lost[0] < 0.8 * lost[1]
    assert refitted.factorized
    assert refitted.proof.holds


def test_what_was_factorized_is_refitted_after_a_cut() -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(64, 3, 8, 8)
    found = sc.study(model, x[:2])
    factorized = found.plan_decomposition(sc.SpatialSVD(), rank=8)
    plan = found.after(factorized).plan(sc.L2(), ratio=0.3)
    whole = sc.apply(found, factorized).model
    bare, refitted = (sc.apply(found, plan, data=x, between=between).model for between in (None, recovering(sc.Refit(), x)))
    with torch.no_grad():
        lost = [float((small(x) - whole(x)).square().mean()) for small in (refitted, bare)]
    assert lost[0] < 0.8 * lost[1]


@pytest.mark.parametrize("recover", [sc.Standard(), sc.Nothing(), sc.Refit(samples=300)], ids=str)
def test_a_loader_is_read_no_further_than_samples_are_wanted(recover: sc.Standard | sc.Nothing | sc.Refit) -> None:
    read = []

    def endless() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            read.append(1)
            yield torch.randn(50, 3, 8, 8, generator=generator), torch.zeros(50)

    compress(network(), PIXELS, ratio=0.5, data=endless(), recover=recover, latency=False)
    assert len(read) == 6


def test_arrays_mappings_and_datasets_serve_as_data() -> None:
    samples = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plans = [
        compress(network(), PIXELS, ratio=0.5, data=data, latency=False).plan.edits
        for data in (samples, samples.numpy(), {"input": samples}, TensorDataset(samples, torch.zeros(20)))
    ]
    assert plans == plans[:1] * 4
