"""A table with a row for each type of layer: what criteria make of the weights, or the feature maps, of each channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from score.test_contract import CRITERIA
from secateur.allocate import Options
from secateur.groups import ChannelGroup
from secateur.pipeline import apply
from secateur.score import L2, SNP, GeometricMedian, Index, NuclearNorm, Scorer
from secateur.study import Study, study

CHANNELS = 8
PLAIN = Options(policy="sum", layer_norm="none")


class Net(nn.Module):
    """A layer, an activation and a last layer; behind the layer there may be another that follows its channels."""

    def __init__(self, layer: nn.Module, last: nn.Module, follower: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.last, self.follower = layer, last, follower or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.follower(self.layer(x))))
        return out


class Embedded(nn.Module):
    """A stream of words and places that a layer writes to as well."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, CHANNELS), nn.Parameter(torch.randn(7, CHANNELS))
        self.up, self.layer, self.last = nn.Linear(CHANNELS, 12), nn.Linear(12, CHANNELS), nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places
        out: Tensor = self.last(x + self.layer(self.up(x).relu()))
        return out


@dataclass(frozen=True)
class Row:
    """A model whose module ``layer`` makes channels, in so many groups."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    def __str__(self) -> str:
        return self.name

    def inputs(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        if self.name == "embedding":
            return torch.randint(0, 20, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator)

    def study(self) -> Study:
        torch.manual_seed(5)
        return study(self.build().eval(), self.inputs(2))


def convolutions(dims: int) -> list[Row]:
    plain, back = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
    shape = (4, *(5, 4, 3)[:dims])
    return [
        Row(f"conv{dims}d", lambda: Net(plain(4, 8, 3, padding=1), plain(8, 2, 1)), shape),
        Row(f"grouped_conv{dims}d", lambda: Net(plain(4, 8, 3, padding=1, groups=2), plain(8, 2, 1)), shape, 2),
        Row(f"depthwise_conv{dims}d", lambda: Net(plain(4, 8, 1), plain(8, 2, 1), plain(8, 8, 3, groups=8)), shape),
        Row(f"transposed_conv{dims}d", lambda: Net(back(4, 8, 3, stride=2), plain(8, 2, 1)), shape, 1, True),
        Row(f"grouped_transposed_conv{dims}d", lambda: Net(back(4, 8, 3, stride=2, groups=2), plain(8, 2, 1)), shape, 2, True),
    ]


ROWS = [
    *(row for dims in (1, 2, 3) for row in convolutions(dims)),
    Row("linear", lambda: Net(nn.Linear(4, 8), nn.Linear(8, 2)), (4,)),
    Row("linear_on_tokens", lambda: Net(nn.Linear(4, 8), nn.Linear(8, 2)), (6, 4)),
    Row("embedding", Embedded, (7,)),
]
rows = pytest.mark.parametrize("row", ROWS, ids=str)


def made_by_layer(found: Study) -> ChannelGroup:
    return next(g for g in found.groups if g.kind == "channels" and any(m.tensor == "layer.weight" for m in g.writers))


def slices(row: Row, found: Study) -> Tensor:
    """The weights of each channel, as ``(channels, rest)``: those of a transposed convolution lie in columns, group below group."""
    weight = found.weights["layer.weight"].detach().double()
    parts = [part.transpose(0, 1) for part in weight.chunk(row.groups)] if row.transposed else [weight]
    return torch.cat(parts).flatten(1)


def norms(row: Row, found: Study) -> Tensor:
    return slices(row, found).square().sum(1).sqrt()


def distances(row: Row, found: Study) -> Tensor:
    """To all others of the same group."""
    return torch.cat([(part[:, None] - part).norm(dim=-1).sum(1) for part in slices(row, found).chunk(row.groups)])


def unlike(row: Row, found: Study) -> Tensor:
    own = slices(row, found)
    return (1 - torch.cosine_similarity(own[:, None], own[None], dim=-1).abs()).sum(1)


def nuclear(row: Row, found: Study) -> Tensor:
    """Of what the layer puts out, and of the words that it is added to."""
    maps: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, __, out: maps.append(out.detach().double()))
        for name, module in found.model.named_modules()
        if name in ("layer", "words")
    ]
    with torch.no_grad():
        found.model(row.inputs(9))
    for handle in handles:
        handle.remove()
    return torch.stack([of_channels(each if each.shape[1] == CHANNELS else each.movedim(-1, 1)) for each in maps]).sum(0)


def of_channels(maps: Tensor) -> Tensor:
    return torch.stack([torch.linalg.svdvals(maps[:, c].reshape(len(maps), -1)).sum() for c in range(CHANNELS)]) / len(maps)


@rows
@pytest.mark.parametrize(
    ("criterion", "by_hand"),
    [(L2(), norms), (GeometricMedian(), distances), (SNP(), unlike), (NuclearNorm(), nuclear)],
    ids=["l2", "gm", "snp", "nn"],
)
def test_scores_of_every_type_of_layer_by_hand(row: Row, criterion: Scorer, by_hand: Callable[[Row, Study], Tensor]) -> None:
    found = row.study()
    scores = found.scores(criterion, data=row.inputs(9), options=PLAIN)[made_by_layer(found).name]
    torch.testing.assert_close(scores, by_hand(row, found), rtol=1e-6, atol=1e-9)


@rows
@pytest.mark.parametrize("criterion", [c for c in CRITERIA if not isinstance(c, Index)], ids=str)
def test_every_criterion_ranks_and_cuts_every_type_of_layer(row: Row, criterion: Scorer) -> None:
    found = row.study()
    scores = found.scores(criterion, data=row.inputs(9))
    group = made_by_layer(found)
    assert scores[group.name].unique().numel() > group.size // 2
    plan = found.plan(criterion, ratios={group.name: 0.5}, scores=scores)
    assert [len(edit.remove) for edit in plan.prunes] == [group.size // 2]
    assert apply(found, plan).proof.holds


@rows
def test_listed_channels_go_from_every_type_of_layer(row: Row) -> None:
    found = row.study()
    group = made_by_layer(found)
    gone = (1, 6)
    plan = found.plan(Index({group.name: gone}), ratios={group.name: 0.26})
    assert plan.prunes[0].remove == gone
    assert found.plan(indices={group.name: gone}).edits == plan.edits
