"""Everyday operators between two layers: channels go through them, and the proof holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.rewrite import prove, rewrite
from secateur.rewrite.graph import rewrite_graph
from secateur.study import Study, study


class Through(nn.Module):
    """``width`` channels that a function of them and of a second layer's turns into as many, or into none."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(5, width), nn.Linear(5, width)
        self.last = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), self.second(x)))


def studied(function: Callable[[Tensor, Tensor], Tensor]) -> Study:
    model, x = Through(function).eval(), torch.randn(2, 4, 5)
    model(x)
    return study(model, x)


def writing(a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    a[:, [0, 2]] = b[:, :2]
    return a


def masked(a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    a[torch.tensor([[True, False, True, False]] * 2)] = b[0, 0]
    return a


def rotated(a: Tensor, b: Tensor) -> Tensor:
    turns = torch.polar(torch.ones(4, 4), torch.arange(16.0).view(4, 4) / 5)
    pairs = torch.view_as_complex(a.unflatten(-1, (4, 2)).contiguous()) * turns[:, :1]
    return torch.view_as_real(pairs).flatten(-2) * b


def cleared(a: Tensor, b: Tensor) -> Tensor:
    a = a * 2
    a[:, 1:3].zero_()
    return a + b


ENDS = torch.tensor([2, 0, 2, 1])


def edges(a: Tensor, b: Tensor) -> Tensor:
    """Attention over the edges of a graph: each node weighs by head what comes in."""
    a, b, ends = a[0].unflatten(-1, (2, 4)), b[0].unflatten(-1, (2, 4)), ENDS[:, None]
    weight = (a * b).sum(-1).exp()
    total = weight.new_zeros(4, 2).scatter_add(0, ends.expand(-1, 2), weight)
    sent = a * (weight / total[ENDS])[..., None]
    return sent.new_zeros(4, 2, 4).scatter_add(0, ends[..., None].expand(-1, 2, 4), sent).flatten(1)


PASSED = {
    "normalize": lambda a, b: F.normalize(a, dim=-1) + b,
    "linalg norm": lambda a, b: a / torch.linalg.norm(a, dim=-1, keepdim=True) + b,
    "cosine": lambda a, b: F.cosine_similarity(a[:, :, None], b[:, None], dim=-1),
    "vecdot": lambda a, b: torch.linalg.vecdot(a[:, :, None], b[:, None]),
    "tensordot": lambda a, b: torch.tensordot(a, b.mean((0, 1))[:, None], 1).expand(-1, -1, 2) + 1,
    "tensordot of pairs": lambda a, b: torch.tensordot(a, b, ([0, 2], [0, 2])),
    "inner": lambda a, b: torch.inner(a, b.mean(0)),
    "outer": lambda a, b: torch.outer(a.sum((0, 1)), b.sum((0, 1))) @ a.sum((0, 1)) + a,
    "addr": lambda a, b: a[0].mT.addr(b.sum((0, 1)), a[0].sum(1)).mT,
    "cdist": lambda a, b: torch.cdist(a, b),
    "pairwise distance": lambda a, b: F.pairwise_distance(a, b, eps=0.1, keepdim=True) * a,
    "diagonal": lambda a, b: torch.einsum("bnc,bnd->bcd", a, b).diagonal(dim1=1, dim2=2),
    "unpooled": lambda a, b: F.max_unpool2d(
        b.unflatten(1, (2, 2)).permute(0, 3, 1, 2)[..., :1, :1],
        F.max_pool2d(a.unflatten(1, (2, 2)).permute(0, 3, 1, 2), 2, return_indices=True)[1],
        2,
    ).flatten(1),
    "table of numbers": lambda a, b: a + torch.outer(torch.arange(4.0), torch.arange(8.0).sin()) * b,
    "identity": lambda a, b: (torch.einsum("bnc,bnd->bcd", a, b) + torch.eye(8)).sum(1),
    "zeros in front": lambda a, b: torch.cat([a.new_zeros(2, 1, 8), a], 1) * torch.cat([b, torch.ones(2, 1, 8)], 1),
    "largest": lambda a, b: a.max(-1, keepdim=True)[0] + a + b.min(-1, keepdim=True).values,
    "median": lambda a, b: a.median(-1, keepdim=True)[0] + b,
    "aminmax": lambda a, b: a * torch.aminmax(b, dim=-1, keepdim=True)[1],
    "nanmean": lambda a, b: a - b.nanmean(-1, keepdim=True),
    "count": lambda a, b: a * (b > 0).count_nonzero(-1)[..., None],
    "cumsum": lambda a, b: a.cumsum(-1) + b,
    "cumprod": lambda a, b: a.cumprod(-1) + b,
    "cummax": lambda a, b: a.cummax(-1)[0] + b.logcumsumexp(-1),
    "flip": lambda a, b: a.flip(-1) + b,
    "fliplr": lambda a, b: torch.fliplr(a.flatten(0, 1)) + b.flatten(0, 1),
    "stacks": lambda a, b: torch.hstack([a, b]) + torch.vstack([a, b]).mean() + torch.dstack([a, b])[..., :8].sum(1, keepdim=True),
    "broadcast": lambda a, b: torch.broadcast_tensors(a, b[:, :1])[1] * a,
    "index_add": lambda a, b: torch.zeros_like(a).index_add(1, torch.tensor([2, 0]), b[:, :2]) + a,
    "index_fill": lambda a, b: a.index_fill(1, torch.tensor([1]), 2.0) + b,
    "written by number": writing,
    "written at the front": lambda a, b: a.index_put((torch.tensor([1, 0]),), b[:, :1]) * 2,
    "written by a mask": masked,
    "scattered": lambda a, b: a.new_zeros(2, 3, 8).scatter_add(1, ENDS[None, :, None].expand(2, -1, 8), a).relu() * b[:, :3],
    "scattered over others": lambda a, b: b.scatter_reduce(1, ENDS[None, :, None].repeat(2, 1, 8), a, "amax", include_self=False),
    "a value scattered": lambda a, b: a.scatter(1, ENDS[None, :, None].expand(2, -1, 8), 0.5) + b,
    "scattered heads": edges,
    "normal distribution": lambda a, b: torch.special.ndtr(a) * b,
    "fourier": lambda a, b: torch.fft.irfft(torch.fft.rfft(a, dim=1), n=4, dim=1) + torch.fft.fft2(b, dim=(0, 1)).real,
    "fourier along channels": lambda a, b: torch.fft.fft(a, dim=-1).real * b,
    "fourier there and back": lambda a, b: torch.fft.irfft(torch.fft.rfft(a, dim=-1) * 2, n=8, dim=-1) + b,
    "fourier over tokens and channels": lambda a, b: torch.fft.fft2(a).real + b,
    "local response norm": lambda a, b: F.local_response_norm(a.mT, 3).mT + b,
    "mean of neighbours": lambda a, b: F.avg_pool1d(a, 3, stride=1, padding=1) + b,
    "mean of pairs": lambda a, b: F.avg_pool1d(a, 2) * b.mean(-1, keepdim=True),
    "rolled": lambda a, b: a.roll(3, -1) + b,
    "rolled onto itself": lambda a, b: a.roll((1, 2), (1, 2)) * a + b,
    "differences": lambda a, b: a.diff(dim=-1) * b.mean(-1, keepdim=True),
    "complex": rotated,
    "complex parts": lambda a, b: torch.complex(a, b).abs() + torch.polar(a.exp(), b).imag,
    "complex conjugates": lambda a, b: (torch.complex(a, b) * torch.complex(b, a).conj() + torch.complex(a, b).conj_physical()).imag,
    "zeroed in place": cleared,
    "a part that is not read": lambda a, b: a.split([1, 7], dim=-1)[1].sum(-1, keepdim=True) + b,
}


@pytest.mark.parametrize("name", PASSED)
def test_channels_go_through(name: str) -> None:
    found = studied(PASSED[name])
    assert not found.coverage.unknown
    held = [d for d in found.coverage.dimensions if d.tensor in ("first.weight", "second.weight") and d.dim == 0 and d.prunable < d.size]
    assert not held
    cut = found.cut(found.plan(ratio=0.5))
    assert cut.dead.any()
    assert prove(cut, rewrite_graph(cut), [found.capture.flat_inputs()]).error <= 1e-9
    assert rewrite(cut).proof.error <= 1e-9


class Relative(nn.Module):
    """Attention of heads that lie in the batch dimension, by scores of distances that are gathered there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.near = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.first(x).view(batch, tokens, 3, 4).transpose(1, 2).reshape(-1, tokens, 4)
        places = (torch.arange(tokens)[:, None] + torch.arange(tokens)) % 7
        scores = torch.gather(self.near(q), -1, places.expand(q.shape[0], tokens, tokens))
        return self.last((scores @ q).view(batch, 3, tokens, 4).transpose(1, 2).reshape(batch, tokens, -1))


def test_an_open_batch_stays_open_where_heads_lie_in_it() -> None:
    model = Relative().eval()
    found = study(model, torch.randn(2, 6, 5))
    heads = next(g for g in found.groups if g.kind == "blocks" and g.prunable)
    small = rewrite(found.cut(found.plan(indices={heads.name: [1]})), prefer="graph").model
    x = torch.randn(5, 6, 5)
    assert small(x).shape == (5, 6, 3)
    torch.testing.assert_close(small(x)[:2], small(x[:2]))


class Placed(nn.Module):
    """Attention that merges the batch with its heads, after a table was added that has a row for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.table = nn.Parameter(torch.randn(2, 4, 12))

    def forward(self, x: Tensor) -> Tensor:
        q = (self.first(x) + self.table).view(2, 4, 3, 4).transpose(1, 2)
        k = q.reshape(6, 4, 4).transpose(1, 2).reshape(2, 3, 4, 4)
        return self.last(((q @ k).softmax(-1) @ q).transpose(1, 2).reshape(2, 4, 12))


def test_heads_go_where_rows_of_the_batch_have_labels() -> None:
    found = study(Placed().eval(), torch.randn(2, 4, 5))
    heads = next(g for g in found.groups if g.kind == "blocks" and g.prunable)
    cut = found.cut(found.plan(indices={heads.name: [1]}))
    small = rewrite(cut)
    assert small.proof.error <= 1e-9
    assert cut.node_shape(next(n for n in found.capture.graph.nodes if str(n.target) == "last.weight")) == (3, 8)
