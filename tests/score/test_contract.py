"""What holds for every criterion; a new one joins by a row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from score.by_hand import group, solved
from secateur.allocate import GlobalRank, Uniform
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
    needs_data,
    score_groups,
)
from secateur.study import Study, study

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
        self.out, self.heads = nn.Linear(8, 3), 2

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.norm(self.stem(x))).flatten(2).mT
        q, k, v = (f(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.mT).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(1)
    model = Net()
    nn.init.uniform_(model.norm.weight, 0.5, 2)
    return model.to(dtype)


def data(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)


SHARES = Combine("average", "tss_norm")


def scores(criterion: Scorer, model: nn.Module, samples: Tensor, combine: Combine | None = None) -> dict[str, Tensor]:
    solution, groups = solved(model, samples[:2])
    observed = calibrate(solution, groups, [criterion], samples, combine=combine)
    return dict(score_groups(criterion, groups, gather(solution, combine=combine, observed=observed)))


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
    """Weights are never rounded again; activations are those of the model, so what they say differs by their rounding."""
    half, exact = net(torch.bfloat16), net(torch.bfloat16).float()
    found = scores(criterion, half, data(torch.bfloat16), SHARES)
    expected = scores(criterion, exact, data(torch.bfloat16).float(), SHARES)
    for name, values in found.items():
        assert values.dtype == torch.float64
        far = 0.01 if needs_data(criterion) else 1e-12
        torch.testing.assert_close(values, expected[name], rtol=0, atol=far * float(expected[name].abs().max()))


class Wide(Net):
    """The same with channels enough for several threads, a quarter of them twins of others."""

    def __init__(self, width: int = 128, heads: int = 4) -> None:
        nn.Module.__init__(self)
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.heads = nn.Linear(width, 3), heads
        within = torch.arange(width).view(heads, -1)[:, torch.randperm(width // heads)]
        first, second, *_ = within.chunk(4, dim=1)
        with torch.no_grad():
            for layer in (self.stem, self.q, self.k, self.v):
                layer.weight[first.flatten()], layer.bias[first.flatten()] = layer.weight[second.flatten()], layer.bias[second.flatten()]


def wide() -> Study:
    torch.manual_seed(4)
    model = Wide().eval()
    return study(model, torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if not isinstance(c, Index)], ids=str)
def test_one_and_two_threads_make_the_same_plans_and_one_the_same_scores(criterion: Scorer) -> None:
    samples = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    plans, found = [], []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        own = wide()
        found.append(own.scores(criterion, data=samples))
        plans.append([own.plan(criterion, ratio=0.43, scores=found[-1], allocator=each).edits for each in (Uniform(), GlobalRank())])
    assert plans[0] == plans[1] == plans[2]
    assert all(torch.equal(found[0][name], found[2][name]) for name in found[0])


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
