"""Small networks that make tables of numbers in forward, or repeat what has no size of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.attention import HEADS, merged, spread


class Positions(nn.Module):
    """Tokens with a table of sines and cosines that is computed for as many as there are, after one more token of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(10, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([x.new_zeros(x.shape[0], 1, 16), x], 1)
        steps = torch.arange(x.shape[1])[:, None] * torch.exp(torch.arange(0, 16, 2) * -0.5)
        table = torch.zeros(x.shape[1], 16).to(x.device, torch.float32)
        table[:, 0::2], table[:, 1::2] = torch.sin(steps), torch.cos(steps)
        x = x + table
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


class LatentAttention(nn.Module):
    """Keys and values from a narrow latent, and a part of the keys that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(10, 16), nn.Linear(16, 4)
        self.query, self.latent, self.shared = nn.Linear(16, HEADS * 6), nn.Linear(16, 8), nn.Linear(16, 2)
        self.norm, self.keys_values, self.out = nn.RMSNorm(8), nn.Linear(8, HEADS * 8), nn.Linear(HEADS * 4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        keys, values = spread(self.keys_values(self.norm(self.latent(x)))).split([4, 4], -1)
        keys = torch.cat([keys, self.shared(x)[:, None].expand(-1, HEADS, -1, -1)], -1)
        y = F.scaled_dot_product_attention(spread(self.query(x)), keys, values)
        return self.head((x + self.out(merged(y))).mean(1))


class BiasedByDistance(nn.Module):
    """Heads laid out along the batch, each with a slope of its own by which a position weighs more the later it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(10, 16), nn.Linear(16, 4)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def bias(self, x: Tensor) -> Tensor:
        slopes = torch.pow(0.5, torch.arange(1, HEADS + 1))
        return (slopes[:, None, None] * torch.arange(x.shape[1])).repeat(x.shape[0], 1, 1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        query, key, value = (spread(layer(tokens)).flatten(0, 1) for layer in (self.query, self.key, self.value))
        weights = torch.baddbmm(self.bias(x), query, key.transpose(1, 2), alpha=0.5).softmax(-1)
        y = (weights @ value).view(x.shape[0], HEADS, x.shape[1], -1)
        return self.head((tokens + self.out(merged(y))).mean(1))


class BiasedByCount(BiasedByDistance):
    """The same with positions counted from the input."""

    def bias(self, x: Tensor) -> Tensor:
        slopes = torch.pow(0.5, torch.arange(1, HEADS + 1))
        counts = (x[..., 0] > 0).cumsum(-1)
        return (slopes[:, None] * counts[:, None]).reshape(-1, 1, x.shape[1]).to(x.dtype)


class PaddedToEven(nn.Module):
    """As many tokens of zeros behind the others as make a whole number of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Linear(10, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        pairs = F.pad(self.first(x), (0, 0, 0, x.shape[1] % 2)).unflatten(1, (-1, 2))
        return self.head(torch.relu(self.last(pairs)).amax(2).mean(1))


class StretchedPositions(nn.Module):
    """A learned table of positions, seen as an image and stretched to as many tokens as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 1, 9, 12))
        self.first, self.last, self.head = nn.Linear(10, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions = F.interpolate(self.positions, (x.shape[1], self.positions.shape[3]), mode="bilinear")
        return self.head(torch.relu(self.last(self.first(x) + positions[:, 0])).mean(1))


class AlignedFeatures(nn.Module):
    """Channels turned by a matrix that a branch makes, with an identity added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = nn.Linear(10, 8), nn.Linear(8, 64)
        self.last, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        turn = self.branch(x.amax(1)).view(-1, 8, 8) + torch.eye(8)
        return self.head(torch.relu(self.last(torch.bmm(x, turn))).amax(1))


class Splines(nn.Module):
    """Two layers of sums of bumps on a fixed grid, one coefficient for each bump of each input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(o, i, 5) * 0.3) for i, o in ((6, 8), (8, 4)))
        self.register_buffer("grid", torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        for weight in (self.first, self.second):
            bumps = torch.exp(-((x[..., None] - self.grid).square()))
            x = F.linear(bumps.flatten(-2), weight.flatten(1))
        return x


class Capsules(nn.Module):
    """Votes of small vectors for others, weighed in two rounds that start from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(4, 4)
        self.votes = nn.Parameter(torch.randn(36, 4, 4, 4) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).unflatten(1, (4, 4)).flatten(3).transpose(2, 3).flatten(1, 2)
        votes = torch.einsum("bik,ijdk->bijd", F.normalize(x, dim=-1), self.votes[: x.shape[1]])
        weights = torch.zeros(x.shape[0], x.shape[1], 4)
        for _ in range(2):
            found = (weights.softmax(-1)[..., None] * votes).sum(1)
            weights = weights + (votes * found[:, None]).sum(-1)
        return self.head(found.norm(dim=-1))


class ConvolutionalMemory(nn.Module):
    """A memory that starts at zero, joined with the image in front of the layer that makes its gates."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(3 + 8, 32, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = memory = torch.zeros(x.shape[0], 8, *x.shape[2:])
        for _ in range(2):
            enter, leave, out, new = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
            memory = leave.sigmoid() * memory + enter.sigmoid() * new.tanh()
            hidden = out.sigmoid() * memory.tanh()
        return self.head(hidden)


class Blurred(nn.Module):
    """A fixed kernel, repeated for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        kernel = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
        x = F.conv2d(x, kernel.to(x.dtype).repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
        return self.head(self.last(x).mean((2, 3)))


class CoordinateAttention(nn.Module):
    """Averages of rows and of columns, weighed together and split again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.rows, self.columns, self.head = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        averages = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        rows, columns = F.hardswish(self.squeeze(averages)).split([x.shape[2], x.shape[3]], 2)
        x = x * self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()
        return self.head(x.mean((2, 3)))


class Experts(nn.Module):
    """Every expert sees every token, as one product of matrices with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(10, 8), nn.Linear(8, 3), nn.Linear(8, 4)
        self.up, self.bias, self.down = (nn.Parameter(torch.randn(3, *s) * 0.3) for s in ((8, 12), (1, 12), (12, 8)))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(0, 1)
        hidden = torch.baddbmm(self.bias, tokens.expand(3, -1, -1), self.up)
        y = torch.bmm(F.gelu(hidden), self.down) * self.gate(tokens).softmax(-1).t()[..., None]
        return self.head(tokens + y.sum(0)).unflatten(0, x.shape[:2]).mean(1)
