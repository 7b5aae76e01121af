"""Small transformers, each with one layout of heads or one way in which tokens and channels mix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, DEPTH = 16, 4, 6
"""Width of the stream, heads, and channels of one head."""
INNER = HEADS * DEPTH


def spread(x: Tensor, heads: int = HEADS) -> Tensor:
    """``(batch, tokens, heads * depth)`` to ``(batch, heads, tokens, depth)``."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """``(batch, heads, tokens, depth)`` to ``(batch, tokens, heads * depth)``."""
    return x.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A pre-norm transformer block around some attention, between two linear layers."""

    def __init__(self, inner: int = INNER) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(10, WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.proj = nn.Linear(inner, WIDTH)
        self.fc1, self.fc2, self.head = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH), nn.Linear(WIDTH, 5)

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.proj(self.attend(self.norm1(x)))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x)


class Separate(Block):
    """Three projections, and the softmax written out."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, INNER) for _ in range(3))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (spread(layer(x)) for layer in (self.q, self.k, self.v))
        return merged(((q @ k.transpose(-2, -1)) * DEPTH**-0.5).softmax(-1) @ v)


class Fused(Block):
    """One projection laid out as ``(3, heads, depth)``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * INNER)

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)


class HeadMajor(Block):
    """One projection laid out as ``(heads, 3, depth)``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * INNER)

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, HEADS, 3, DEPTH).unbind(3)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return merged(F.scaled_dot_product_attention(q, k, v))


class Chunked(Block):
    """One projection cut in three, with the scale given."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * INNER, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (spread(each) for each in self.qkv(x).chunk(3, dim=-1))
        return merged(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3))


class Library(Block):
    """Torch's own attention layer."""

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def attend(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class NeighbouringValues(Separate):
    """Values of neighbouring tokens, weighed by a kernel for each head, beside those that attention finds."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(HEADS, HEADS, (3, 1), padding=(1, 0), groups=HEADS, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (spread(layer(x)) for layer in (self.q, self.k, self.v))
        return merged(F.scaled_dot_product_attention(q, k, v) + self.near(v))


class Einsum(Block):
    """Attention as two einsums with an ellipsis."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, INNER) for _ in range(3))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (HEADS, DEPTH)) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("...qhd,...khd->...hqk", q, k).softmax(-1)
        return torch.einsum("...hqk,...khd->...qhd", weights, v).flatten(-2)


class SlidingWindows(Block):
    """Queries and keys in windows that overlap by half, values in windows of their own, all by strides."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, INNER) for _ in range(3))

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = (spread(layer(x)).flatten(0, 1) for layer in (self.q, self.k, self.v))
        weights = self.joined(torch.einsum("bcxd,bcyd->bcxy", self.halved(query), self.halved(key)))
        padded = F.pad(value, (0, 0, 1, 1))
        outer, inner, last = padded.stride()
        values = padded.as_strided((value.shape[0], 4, 4, value.shape[-1]), (outer, 2 * inner, inner, last))
        mixed = torch.einsum("bcxy,bcyd->bcxd", weights.softmax(-1), values)
        return merged(mixed.reshape(x.shape[0], -1, 8, value.shape[-1]))

    def halved(self, x: Tensor) -> Tensor:
        """Windows of four that begin at every second position."""
        x = x.view(x.shape[0], 2, 4, x.shape[-1])
        return x.as_strided((x.shape[0], 3, *x.shape[2:]), (x.stride(0), x.stride(1) // 2, *x.stride()[2:]))

    def joined(self, scores: Tensor) -> Tensor:
        """The first rows of all windows, then the last of the last."""
        return torch.cat([scores[:, :, :2], scores[:, -1:, 2:]], 1)


class WrittenWindows(SlidingWindows):
    """The same with weights that are written into zeros, after a look at a constant."""

    def joined(self, scores: Tensor) -> Tensor:
        if bool((torch.ones(2) < 0).any()):
            return scores
        weights = scores.new_zeros(scores.shape[0], 4, 2, 4)
        weights[:, :-1], weights[:, -1] = scores[:, :, :2], scores[:, -1, 2:]
        return weights


class Rotary(Block):
    """Two query heads to each key head, turned by an angle for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER // 2), nn.Linear(WIDTH, INNER // 2)
        self.register_buffer("rate", torch.rand(DEPTH // 2), persistent=False)

    def turn(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        left, right = x[..., : DEPTH // 2], x[..., DEPTH // 2 :]
        return x * cosine + torch.cat([-right, left], -1) * sine

    def attend(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.rate
        angle = torch.cat([angle, angle], -1)
        q, k, v = spread(self.q(x)), spread(self.k(x), HEADS // 2), spread(self.v(x), HEADS // 2)
        q, k = (self.turn(each, angle.cos(), angle.sin()) for each in (q, k))
        k, v = (each.repeat_interleave(2, dim=1) for each in (k, v))
        return merged(F.scaled_dot_product_attention(q, k, v))


class RotaryInPart(Rotary):
    """The same, and channels that are not turned laid behind those that are; there are none."""

    def turn(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        turned, rest = x[..., :DEPTH], x[..., DEPTH:]
        return torch.cat([super().turn(turned, cosine, sine), rest], -1)


class ExpandedKeys(Block):
    """Two query heads to each key head, the keys expanded and reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER // 2), nn.Linear(WIDTH, INNER // 2)

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        k, v = (spread(layer(x), HEADS // 2)[:, :, None].expand(-1, -1, 2, -1, -1) for layer in (self.k, self.v))
        k, v = (each.reshape(batch, HEADS, tokens, DEPTH) for each in (k, v))
        return merged(F.scaled_dot_product_attention(spread(self.q(x)), k, v))


class RelativePosition(Block):
    """A bias for each head and distance, looked up in a table, within windows of a shifted image."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * INNER)
        self.table = nn.Parameter(torch.randn(9, HEADS))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        self.register_buffer("index", ((places[:, :, None] - places[:, None]) + 1).mul(torch.tensor([3, 1])[:, None, None]).sum(0))

    def attend(self, x: Tensor) -> Tensor:
        batch, width = x.shape[0], x.shape[-1]
        x = torch.roll(x, (-1, -1), (1, 2)).view(batch, 2, 2, 2, 2, width)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, width)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).contiguous()
        x = (((q * DEPTH**-0.5) @ k.transpose(-2, -1)) + bias[None]).softmax(-1) @ v
        x = x.transpose(1, 2).reshape(batch, 2, 2, 2, 2, INNER)
        return torch.roll(x.permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, INNER), (1, 1), (1, 2))


class TalkingHeads(Block):
    """Scores are mixed over heads before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, INNER) for _ in range(3))
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (spread(layer(x)) for layer in (self.q, self.k, self.v))
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scores = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return merged(scores @ v)


class ChannelAttention(Block):
    """Attention among the channels of each head, over tokens, with normalised queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * INNER)
        self.temperature = nn.Parameter(torch.randn(HEADS, 1, 1))

    def attend(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, DEPTH).permute(2, 0, 3, 4, 1)
        scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        return (scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(batch, tokens, INNER)


class LinearAttention(Block):
    """No softmax: positive features, and a sum over tokens as the divisor."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, INNER) for _ in range(3))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (spread(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return merged((q @ (k.transpose(-2, -1) @ v)) / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True))


class CrossAttention(Block):
    """Queries from one input, keys and values from another, with a mask over the latter."""

    def __init__(self) -> None:
        super().__init__()
        del self.fc1, self.fc2
        self.q, self.kv = nn.Linear(WIDTH, INNER), nn.Linear(7, 2 * INNER)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(x)
        k, v = self.kv(memory).view(*memory.shape[:2], 2, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        x = x + self.proj(merged(F.scaled_dot_product_attention(spread(self.q(self.norm1(x))), k, v, attn_mask=mask[:, None, None])))
        return self.head(self.norm2(x))


class PoolingToken(Block):
    """A learned query gathers all tokens into one."""

    def __init__(self) -> None:
        super().__init__()
        del self.fc1, self.fc2
        self.query = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.q, self.k, self.v = (nn.Linear(WIDTH, INNER) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.embed(x))
        q = spread(self.q(self.query.expand(x.shape[0], -1, -1)))
        x = merged(F.scaled_dot_product_attention(q, spread(self.k(x)), spread(self.v(x))))
        return self.head(self.norm2(self.proj(x)).squeeze(1))


class ClassToken(nn.Module):
    """Patches, a learned token in front, learned positions, and torch's encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layer(x))[:, 0])


class Mixer(nn.Module):
    """One MLP over tokens, one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(10, WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class SpatialGating(nn.Module):
    """Half of the channels is mixed along tokens by a convolution and multiplied with the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed = nn.Linear(10, 12), nn.Linear(12, 2 * WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        self.along = nn.Conv1d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, mixed = F.gelu(self.embed(F.relu(self.first(x)))).chunk(2, -1)
        return self.head((kept * self.along(self.norm(mixed))).mean(1))


class PatchMerging(nn.Module):
    """Four neighbours side by side make one token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 1), nn.LayerNorm(32)
        self.reduce, self.head = nn.Linear(32, 12, bias=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.head(F.gelu(self.reduce(self.norm(torch.cat(corners, -1)))).mean((1, 2)))


class LanguageModel(nn.Module):
    """Numbers of tokens in, a tied head out; gated MLP, root-mean-square norm, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(18, WIDTH), nn.Embedding(12, WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.gate, self.up, self.down = (nn.Linear(*shape, bias=False) for shape in ((WIDTH, 20), (WIDTH, 20), (20, WIDTH)))
        self.head = nn.Linear(WIDTH, 18, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        q, k, v = (spread(each) for each in self.qkv(self.norm1(x)).split(INNER, dim=-1))
        x = x + self.proj(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        x = x + self.down(F.silu(self.gate(self.norm2(x))) * self.up(x))
        return self.head(x)


class SharedValues(nn.Module):
    """All heads read one key and one value, by broadcasting, and lie one after the other behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.query, self.pair = nn.Linear(10, 12), nn.Linear(12, 24), nn.Linear(12, 12)
        self.out, self.head = nn.Linear(24, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        key, value = self.pair(x).chunk(2, -1)
        query = self.query(x).unflatten(-1, (4, 6)).transpose(1, 2)
        mixed = (query @ key[:, None].mT * 6**-0.5).softmax(-1) @ value[:, None]
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))
