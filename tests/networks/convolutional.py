"""Small convolutional networks, each with one way in which channels are coupled."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv(width: int, out: int, kernel: int = 3, **options: int) -> nn.Sequential:
    """Convolution, batch norm and activation."""
    layer = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU())


class Head(nn.Module):
    """Global average and classifier."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    """A sum of a block and its input, in-place activations, an average at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 10, 1, stride=2)
        self.conv3 = nn.Conv2d(8, 10, 3, stride=2, padding=1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        y = F.relu_(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        x = F.relu(y, inplace=True)
        return self.head(self.down(x) + self.conv3(x))


class PaddedShortcut(nn.Module):
    """A shortcut without weights: every second pixel, and zeros for the channels that are new."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = conv(3, 8), conv(8, 16, stride=2)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.block(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


class DenseBlock(nn.Module):
    """Each layer reads all that came before, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        widths = (8, 14, 20)
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, 6, 3, padding=1)) for w in widths)
        self.norm, self.head = nn.BatchNorm2d(26), Head(26)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(F.relu(self.norm(torch.cat(found, 1))))


class Inception(nn.Module):
    """Four branches side by side, one of them a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.one, self.pooled = conv(8, 6, 1), conv(8, 4, 1)
        self.three = nn.Sequential(conv(8, 6, 1), conv(6, 8))
        self.five = nn.Sequential(conv(8, 4, 1), conv(4, 6, 5))
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return self.head(torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1))


class Grouped(nn.Module):
    """Grouped convolutions, and a shortcut around one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.block = nn.Sequential(conv(16, 16, 1), conv(16, 16, groups=4), conv(16, 16, 1))
        self.wide = conv(16, 24, groups=4)
        self.head = Head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.wide(x + self.block(x)))


class Separable(nn.Module):
    """Depthwise convolutions, one with two outputs a channel, in inverted bottlenecks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.block = nn.Sequential(conv(8, 16, 1), conv(16, 16, groups=16), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
        self.multiplied = conv(8, 16, groups=8)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.multiplied(x + self.block(x)))


class Decoder(nn.Module):
    """Down and up again by a transposed convolution, with a concatenated skip."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        convolution, norm = CONVOLUTIONS[rank], BATCH_NORMS[rank]
        self.enter = nn.Sequential(convolution(2, 6, 3, padding=1), norm(6), nn.ReLU())
        self.down = nn.Sequential(convolution(6, 8, 3, stride=2, padding=1), norm(8), nn.ReLU())
        self.up = TRANSPOSED[rank](8, 6, 2, stride=2)
        self.mix = convolution(12, 8, 3, padding=1)
        self.out = convolution(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        return self.out(F.relu(self.mix(torch.cat([self.up(self.down(skip)), skip], 1))))


class GroupedDecoder(nn.Module):
    """A grouped and a depthwise transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4)
        self.mix = conv(8, 8, 1)
        self.each = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.each(self.mix(F.relu(self.up(self.stem(x))))))


class FirstGroupedDecoder(nn.Module):
    """A grouped transposed convolution that reads the inputs themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 12, 3, stride=2, padding=1, groups=2)
        self.norm, self.last = nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(self.up(x))))


class SecondOrder(nn.Module):
    """Pooling of all products of two channels, as in bilinear networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x).relu().flatten(2)
        products = torch.bmm(features, features.transpose(1, 2)) / features.shape[-1]
        return self.head(products.flatten(1))


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate that is computed from all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.squeeze, self.excite = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return self.head(x * torch.sigmoid(gate))


class NeighbouringChannels(nn.Module):
    """A gate for each channel that is computed from those beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = conv(3, 12), nn.Conv1d(1, 1, 3, padding=1)
        self.last, self.head = conv(12, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.mix(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        return self.head(self.last(x * gate[:, :, None, None]))


class ChannelShuffle(nn.Module):
    """Halves that are joined and shuffled by view, transpose, view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.branch = nn.Sequential(conv(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), conv(6, 6, 1))
        self.last = conv(12, 10, 1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        batch, width, rows, columns = x.shape
        x = x.view(batch, 2, width // 2, rows, columns).transpose(1, 2).contiguous().view(batch, -1, rows, columns)
        return self.head(self.last(x))


class ShuffleLayer(nn.Module):
    """Torch's own shuffle between two grouped convolutions."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.first, self.second = conv(12, 12, 1, groups=groups), conv(12, 12, groups=groups)
        self.shuffle = nn.ChannelShuffle(groups)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.shuffle(self.first(self.stem(x)))))


class IndexedChannels(nn.Module):
    """Channels in an order told by a buffer, some of them by numbers, counted from the end too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = conv(3, 8), conv(8, 8, 1), Head(9)
        self.register_buffer("order", torch.tensor([3, 0, 7, 5, 1, 2, 6, 4]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.last(x[:, self.order]) + x
        return self.head(x[:, [0, 5, -1, 2, -7, 3, 2, 4, 6]])


class PixelShuffle(nn.Module):
    """Channels that become pixels, and pixels that become channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.PixelUnshuffle(2)
        self.stem, self.wide = conv(12, 8), conv(8, 24)
        self.up = nn.PixelShuffle(2)
        self.refine, self.out = conv(6, 6), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(self.refine(self.up(self.wide(self.stem(self.down(x)))))))


class Flatten(nn.Module):
    """A linear layer that reads all pixels of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.MaxPool2d(4), conv(8, 6))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class GroupNormed(nn.Module):
    """Group norms with several groups, one, and as many as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 12), (12, 12), (12, 8)))
        self.norm1, self.norm2, self.norm3 = nn.GroupNorm(4, 12), nn.GroupNorm(1, 12), nn.GroupNorm(8, 8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(x)))
        x = F.relu(x + self.norm2(self.second(x)))
        return self.head(F.relu(self.norm3(self.third(x))))


class InstanceNormed(nn.Module):
    """Instance norms, with and without scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm1, self.norm2 = nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(6)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm2(self.second(F.relu(self.norm1(self.first(x)))))))


class WeightNormed(nn.Module):
    """Weights that are computed: direction times length."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.second = parametrizations.weight_norm(nn.Conv2d(8, 6, 3, padding=1))
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


class WeightNormedByHooks(nn.Module):
    """Direction times length, as torch did it before it had parametrizations."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.first = torch.nn.utils.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
            self.second = torch.nn.utils.weight_norm(nn.Conv2d(8, 6, 3, padding=1), dim=1)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))


class SpectralNormed(nn.Module):
    """A weight divided by its largest singular value, between plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.third = nn.Linear(6, 12), nn.Linear(10, 4)
        self.second = parametrizations.spectral_norm(nn.Linear(12, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(x)))))


class Standardised(nn.Module):
    """A convolution whose weight is standardised on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        x = F.relu(self.first(x))
        return self.head(F.relu(F.conv2d(x, weight, self.second.bias, padding=1)))


class Sloped(nn.Module):
    """A slope for each channel, and one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.each, self.all, self.head = nn.PReLU(8), nn.PReLU(), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.all(self.second(self.each(self.first(x)))))


class Gated(nn.Module):
    """The halves of a layer multiply each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(x), dim=1)
        gate, value = self.second(x).split(6, dim=1)
        return self.head(torch.tanh(gate) * value)


class LayerScaled(nn.Module):
    """A depthwise convolution, channels moved last for norm and MLP, a learned scale on the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 2, stride=2)
        self.depthwise, self.norm = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.LayerNorm(12)
        self.wide, self.narrow = nn.Linear(12, 24), nn.Linear(24, 12)
        self.scale = nn.Parameter(torch.randn(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))) * self.scale
        return self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


class Hierarchical(nn.Module):
    """Parts of a layer, each added to what came out of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.parts = nn.ModuleList(conv(4, 4) for _ in range(2))
        self.last, self.head = conv(12, 8, 1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = torch.chunk(self.stem(x), 3, dim=1)
        found = [first]
        for part, layer in zip(rest, self.parts, strict=True):
            found.append(layer(part + found[-1]))
        return self.head(self.last(torch.cat(found, 1)))


class InPlace(nn.Module):
    """Writing into slices and tensors that others read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), nn.Conv2d(8, 4, 3, padding=1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x).clone()
        y[:, :4].add_(self.third(x))
        y.mul_(2).clamp_(max=3)
        x.add_(y)
        return self.head(x)


class Buffers(nn.Module):
    """Tables that are no parameters: input statistics, and a factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(3, 1, 1))
        self.register_buffer("factor", torch.randn(8, 1, 1))
        self.register_buffer("ramp", torch.randn(6), persistent=False)
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), Head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x - self.mean)) * self.factor
        return self.head(self.second(x) + self.ramp[:, None, None])


class Reused(nn.Module):
    """One layer called twice, around another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.other, self.head = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1), conv(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(self.stem(x)))
        return self.head(F.relu(self.shared(self.other(x))))


class Resampled(nn.Module):
    """Several outputs by name, resampling, and inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shrink = conv(3, 8), conv(8, 12, stride=2)
        self.mask, self.side = nn.Conv2d(12, 2, 1), Head(8, 3)

    def forward(self, image: Tensor, *, scale: float, options: dict[str, Tensor]) -> dict[str, object]:
        x = self.body(image * scale + options["shift"])
        masks = F.interpolate(self.mask(self.shrink(x)), scale_factor=2.0, mode="bilinear", align_corners=False)
        return {"masks": masks, "side": (self.side(x), {"scale": scale})}
