"""What holds for every criterion; a new one joins by a row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from score.by_hand import group, solved
from secateur.score import (
    L2,
    OBS,
    SNP,
    Combine,
    Fisher,
    GeometricMedian,
    GroupNorm,
    Index,
    NuclearNorm,
    Random,
    Scorer,
    Signal,
    Taylor,
    Variance,
    calibrate,
    gather,
    score_groups,
)

CRITERIA: list[Scorer] = [
    L2(),
    L2(fold_bn=True),
    GeometricMedian(),
    GeometricMedian(mix=0.25),
    GroupNorm(),
    Signal(),
    NuclearNorm(),
    SNP(),
    SNP(gamma=2),
    Taylor(),
    Taylor(centred=False),
    Fisher(),
    Variance(),
    OBS(),
    OBS(weighted=False),
    Random(seed=3),
    Index({"stem": (1, 2)}),
]
BY_CONTENT = [c for c in CRITERIA if not isinstance(c, Random | Index)]


class Net(nn.Module):
    """A convolution whose outputs become tokens of a small attention block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.norm(self.stem(x))).flatten(2).mT
        q, k, v = (f(tokens).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.mT).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(1)
    model = Net()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    return model.to(dtype)


def data(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)


def scores(criterion: Scorer, model: nn.Module, samples: Tensor) -> dict[str, Tensor]:
    solution, groups = solved(model, samples[:2])
    observed = calibrate(solution, groups, [criterion], samples)
    return dict(score_groups(criterion, groups, gather(solution, observed=observed)))


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_every_channel_has_a_finite_precise_score(criterion: Scorer) -> None:
    solution, groups = solved(net(), data()[:2])
    observed = calibrate(solution, groups, [criterion], data())
    found = score_groups(criterion, groups, gather(solution, observed=observed))
    assert set(found) == {g.name for g in groups if g.prunable}
    for each in (g for g in groups if g.prunable):
        assert found[each.name].shape == (each.size,)
        assert found[each.name].dtype == torch.float64
        assert torch.isfinite(found[each.name]).all()


@pytest.mark.parametrize("criterion", BY_CONTENT, ids=str)
@pytest.mark.parametrize("layers", [("stem", "norm"), ("q", "k"), ("v",)])
def test_permuting_channels_permutes_scores(criterion: Scorer, layers: tuple[str, ...]) -> None:
    order = torch.tensor([2, 0, 3, 1, 4, 7, 6, 5])
    model = net()
    before = scores(criterion, model, data())
    with torch.no_grad():
        for name in layers:
            layer = getattr(model, name)
            for tensor in (*layer.parameters(), *(b for b in layer.buffers() if b.ndim)):
                tensor.copy_(tensor[order])
        for name in {"stem": ("q", "k", "v"), "q": (), "v": ("out",)}[layers[0]]:
            getattr(model, name).weight.copy_(getattr(model, name).weight[:, order])
    after = scores(criterion, model, data())
    name = next(n for n, s in before.items() if s.numel() == 8 and not torch.allclose(s, after[n]))
    torch.testing.assert_close(after[name], before[name][order])


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_half_precision_models_get_nearly_the_same_scores(criterion: Scorer) -> None:
    rounded = net(torch.bfloat16)
    found = scores(criterion, rounded, data(torch.bfloat16))
    expected = scores(criterion, net(torch.bfloat16).to(torch.float64), data(torch.bfloat16).double())
    for name, values in found.items():
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, expected[name], rtol=0.2, atol=0.4)


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_one_and_two_threads_rank_alike(criterion: Scorer) -> None:
    one = scores(criterion, net(), data())
    torch.set_num_threads(2)
    two = scores(criterion, net(), data())
    assert {n: s.argsort().tolist() for n, s in one.items()} == {n: s.argsort().tolist() for n, s in two.items()}


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_criteria_are_values(criterion: Scorer) -> None:
    again: Callable[..., Scorer] = type(criterion)
    assert again(**vars(criterion)) == criterion
    assert hash(again(**vars(criterion))) == hash(criterion)


def test_random_scores_follow_the_seed_and_the_name_alone() -> None:
    solution, groups = solved(net(), data()[:2])
    evidence = gather(solution, combine=Combine("sum", "none"))
    whole = score_groups(Random(7), groups, evidence)
    few = score_groups(Random(7), [g for g in groups if g.name == "stem"], evidence)
    assert torch.equal(whole["stem"], few["stem"])
    assert not torch.equal(whole["stem"], score_groups(Random(8), groups, evidence)["stem"])
    assert not torch.equal(whole["stem"], Random(7)(group("other", 8), evidence))


def test_listed_channels_score_lowest() -> None:
    solution, groups = solved(net(), data()[:2])
    found = score_groups(Index({"stem": (1, 2)}), groups, gather(solution))
    assert found["stem"].tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
