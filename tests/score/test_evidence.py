from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from score.by_hand import group, member, solved
from secateur.errors import ModelError
from secateur.score import L2, Combine, Evidence, GeometricMedian, gather, score_groups
from secateur.score.evidence import lengths, occurrences

PLAIN = Combine("sum", "none")


class Words(nn.Module):
    """An embedding and a linear layer that write one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        return self.head(hidden + self.inner(hidden))


def test_occurrences_hold_each_channel_at_most_once() -> None:
    channels = np.array([3, 0, 3, 1, 0, 3])
    assert [o.tolist() for o in occurrences(channels)] == [[0, 1, 3], [2, 4], [5]]
    assert list(occurrences(np.zeros(0, dtype=np.int64))) == []


def test_queries_and_keys_of_one_weight_are_two_producers() -> None:
    weights = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 3.0], [9.0, 9.0], [9.0, 9.0]])
    fused = group(size=2, members=[member("w", [0, 1, 2, 3], [0, 1, 0, 1], length=6)])
    evidence = Evidence({"w": weights}, Combine("sum", "tss_norm"))
    assert [p.channels.tolist() for p in evidence.producers(fused)] == [[0, 1], [0, 1]]
    torch.testing.assert_close(L2()(fused, evidence), torch.tensor([5 / 6 + 10 / 13, 1 / 6 + 3 / 13], dtype=torch.float64))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 4, 3),
        nn.Conv2d(3, 4, 3),
        nn.Conv3d(3, 4, 2),
        nn.ConvTranspose1d(3, 4, 3),
        nn.ConvTranspose2d(3, 4, 3),
        nn.ConvTranspose3d(3, 4, 2),
        nn.Linear(3, 4),
    ],
)
def test_norms_of_the_filters_of_every_kind_of_layer(layer: nn.Module) -> None:
    rank = layer.weight.ndim - 2
    follower = nn.Linear(4, 2) if not rank else [nn.Conv1d, nn.Conv2d, nn.Conv3d][rank - 1](4, 2, 1)
    solution, groups = solved(nn.Sequential(layer, follower), torch.randn(2, 3, *[5] * rank))
    expected = [layer.weight.detach().select(1 if "Transpose" in type(layer).__name__ else 0, c).norm() for c in range(4)]
    found = L2()(groups[0], gather(solution, combine=PLAIN))
    torch.testing.assert_close(found, torch.stack(expected).double())


def test_norms_of_a_grouped_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    solution, groups = solved(nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 5, 5))
    found = next(g for g in groups if g.name == "1")
    weight = layer.weight.detach()
    expected = [weight[2 * (c // 3) : 2 * (c // 3) + 2, c % 3].norm() for c in range(6)]
    torch.testing.assert_close(L2()(found, gather(solution, combine=PLAIN)), torch.stack(expected).double())


def test_a_batch_norm_can_be_folded_into_the_norms() -> None:
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 4.0]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 1.0, 16.0]))
    solution, groups = solved(nn.Sequential(convolution, norm, nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 5, 5))
    evidence = gather(solution, combine=PLAIN)
    bare = convolution.weight.detach().flatten(1).norm(dim=1).double()
    torch.testing.assert_close(L2()(groups[0], evidence), bare)
    expected = bare * torch.tensor([1.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(L2(fold_bn=True)(groups[0], evidence), expected, rtol=1e-4, atol=1e-6)


def test_a_batch_norm_behind_a_branch_is_not_folded() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.out(functional.relu(self.norm(y)) + y)

    model = Branch()
    nn.init.constant_(model.norm.weight, 9.0)
    solution, groups = solved(model, torch.randn(2, 3, 5, 5))
    evidence = gather(solution, combine=PLAIN)
    torch.testing.assert_close(L2(fold_bn=True)(groups[0], evidence), L2()(groups[0], evidence))


def test_embeddings_are_not_scored_where_a_layer_writes_too() -> None:
    model = Words()
    solution, groups = solved(model, torch.randint(10, (2, 5)))
    stream = next(g for g in groups if g.prunable and g.size == 6)
    assert {m.tensor for m in stream.writers} == {"embed.weight", "inner.weight"}
    found = L2()(stream, gather(solution, combine=PLAIN))
    torch.testing.assert_close(found, model.inner.weight.detach().norm(dim=1).double())


def test_embeddings_are_scored_where_nothing_else_writes() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3))
    solution, groups = solved(model, torch.randint(10, (2, 5)))
    found = L2()(groups[0], gather(solution, combine=PLAIN))
    torch.testing.assert_close(found, model[0].weight.detach().norm(dim=0).double())


def test_a_depthwise_convolution_follows_its_producer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    solution, groups = solved(model, torch.randn(2, 3, 6, 6))
    before = L2()(groups[0], gather(solution, combine=PLAIN))
    torch.testing.assert_close(before, model[0].weight.detach().flatten(1).norm(dim=1).double())


def test_the_input_side_of_a_grouped_transposed_convolution_makes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 6, 3, groups=2), nn.Conv2d(6, 2, 1))
    _, groups = solved(model, torch.randn(2, 3, 5, 5))
    roles = {g.name: {m.tensor: m.role for m in g.members if m.tensor.endswith("weight")} for g in groups if g.kind == "channels"}
    assert roles["0"] == {"0.weight": "writes", "1.weight": "reads"}
    assert roles["1"] == {"1.weight": "writes", "2.weight": "reads"}


def test_a_depthwise_transposed_convolution_follows_its_producer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    _, groups = solved(model, torch.randn(2, 3, 6, 6))
    assert [w.tensor for w in groups[0].writers] == ["0.weight"]


def test_distances_stay_within_a_group_of_a_convolution() -> None:
    weights = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    alone = group(size=4)
    whole = GeometricMedian()(alone, Evidence({"layer.weight": weights}, PLAIN))
    split = GeometricMedian()(alone, Evidence({"layer.weight": weights}, PLAIN, partitions={"layer.weight": 2}))
    assert whole.tolist() == [11, 9, 9, 17]
    assert split.tolist() == [1, 1, 4, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1, 1] = value
    solution, groups = solved(model, torch.randn(2, 3))
    with pytest.raises(ModelError, match=r"0\.weight"):
        score_groups(L2(), groups, gather(solution))


def test_lengths_of_rows_that_single_precision_cannot_square() -> None:
    rows = torch.tensor([[3e25, 4e25], [3e-22, 4e-22], [3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(lengths(rows), torch.tensor([5e25, 5e-22, 5.0, 0.0], dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert torch.allclose(lengths(torch.tensor([[300.0, 400.0]], dtype=torch.float16)), torch.tensor([500.0], dtype=torch.float64))
