"""The worked example of two coupled layers and a plain one, from weights and feature maps to what goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.allocate import GlobalRank, Options
from secateur.score import L2, NuclearNorm, Policy, Scorer
from secateur.study import Study, study

X, F, G = ([11.0, 19, 38, 25, 46], [20.0, 12, 18, 16, 39], [13.0, 22, 16, 29, 17])
SUMS = [25.0, 22, 64, 43, 58]


class Example(nn.Module):
    """``F(x) + x`` with a plain layer G behind it; the norms of the filters are as given."""

    def __init__(self, inner: list[float]) -> None:
        super().__init__()
        self.x, self.f, self.g, self.out = (nn.Linear(*shape, bias=False) for shape in ((1, 5), (5, 5), (5, 5), (5, 2)))
        with torch.no_grad():
            self.x.weight.copy_(torch.tensor(X).view(5, 1))
            self.f.weight.copy_(torch.diag(torch.tensor(inner)))
            self.g.weight.copy_(torch.diag(torch.tensor(G)))

    def forward(self, t: Tensor) -> Tensor:
        stream = self.x(t)
        return self.out(torch.relu(self.g(stream + self.f(stream))))


def planned(criterion: Scorer, policy: Policy, found: Study, **wish: float | dict[str, float]) -> dict[str, tuple[int, ...]]:
    """Channels that go by layer, of the sum and of G."""
    options = Options(policy=policy, layer_norm="tss_norm")
    plan = found.plan(criterion, allocator=GlobalRank(), options=options, data=[torch.ones(1, 1)], **wish)
    return {"g" if edit.name == "g" else "sum": edit.remove for edit in plan.prunes}


@pytest.mark.parametrize(("policy", "expected"), [("average", {"sum": (0, 1, 3), "g": (0, 2)}), ("sum", {"sum": (1,), "g": (0, 1, 2, 4)})])
def test_half_of_all_channels_by_the_norms_of_filters(policy: Policy, expected: dict[str, tuple[int, ...]]) -> None:
    assert planned(L2(), policy, study(Example(F).eval(), torch.ones(1, 1)), ratio=0.5) == expected


def test_backward_ranks_the_stream_by_its_sums() -> None:
    found = study(Example([s / x - 1 for s, x in zip(SUMS, X, strict=True)]).eval(), torch.ones(1, 1))
    assert planned(NuclearNorm(), "backward", found, ratios={"add*": 0.4}) == {"sum": (0, 1)}
    scores = found.scores(NuclearNorm(), data=[torch.ones(1, 1)], options=Options(policy="backward", layer_norm="tss_norm"))
    stream = next(values for name, values in scores.items() if name != "g")
    torch.testing.assert_close(stream, torch.tensor(SUMS, dtype=torch.float64) / sum(SUMS))


@pytest.mark.parametrize("policy", ["average", "sum"])
def test_a_ratio_for_the_sum_takes_its_two_lowest(policy: Policy) -> None:
    assert planned(L2(), policy, study(Example(F).eval(), torch.ones(1, 1)), ratios={"add*": 0.4}) == {"sum": (0, 1)}


def test_a_reshape_to_twelve_heads_is_thinned_or_loses_heads() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 3 * 768), nn.Linear(768, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 12, 64)).permute(2, 0, 3, 1, 4).unbind(0)
            return self.out((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2))

    found = study(Heads().eval(), torch.randn(1, 3, 8))
    inner = {e.name.rpartition(".")[2]: e.kept for e in found.plan(ratio=0.5, options=Options(reshape_channel_axis=-1)).prunes}
    outer = {e.name.rpartition(".")[2]: e.kept for e in found.plan(ratio=0.5, options=Options(reshape_channel_axis=-2)).prunes}
    assert inner == {"qk": 12 * 32, "v": 12 * 32}
    assert outer == {"heads": 6}
