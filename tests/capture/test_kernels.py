"""Models that are recorded below autograd, where kernels run instead of functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.capture.normalize import normalize
from secateur.capture.record import record


class Mapped(nn.Module):
    """Layers behind a mapped call, which can only be recorded below ``torch.func``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.vmap(torch.tanh)(x))
        return out


class Outputs(nn.Module):
    """The outputs of a recurrent layer, without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


class Attention(nn.Module):
    """One head over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        mixed = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.out(mixed)  # type: ignore[no-any-return]


IMAGES, ROWS, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 6), torch.randn(2, 5, 6)
CASES = {
    "layer_norm": (TOKENS, [nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)]),
    "rms_norm": (TOKENS, [nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 2)]),
    "group_norm": (IMAGES, [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3)]),
    "batch_norm": (IMAGES, [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3)]),
    "prelu": (IMAGES, [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 2, 3)]),
    "transposed": (IMAGES, [nn.ConvTranspose2d(3, 8, 3, stride=2, output_padding=1), nn.Conv2d(8, 2, 3, groups=1)]),
    "rows": (ROWS, [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)]),
    "without_bias": (ROWS, [nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)]),
    "weight_norm": (IMAGES, [nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 2, 3)]),
    "softmax": (ROWS, [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Softmax(-1), nn.Linear(4, 2)]),
    "recurrent": (TOKENS, [Outputs(nn.LSTM(6, 8, batch_first=True)), nn.Linear(8, 2)]),
    "attention": (TOKENS, [Attention()]),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_are_cut_where_only_their_kernels_show(name: str) -> None:
    x, layers = CASES[name]
    torch.manual_seed(0)
    model = Mapped(*layers).eval()
    study = sc.study(model, x)
    assert not study.layers.unknown
    result = sc.apply(model, study.plan(ratio=0.5), x)
    assert result.proof.holds
    assert result.after.parameters < result.before.parameters


def test_kernels_have_the_names_of_functions() -> None:
    model = Mapped(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4), nn.LayerNorm(4), nn.LogSoftmax(-1)).eval()
    found = {str(n.target) for n in normalize(record(model, (IMAGES,))).graph.nodes if n.op == "call_function"}
    assert found >= {"aten.conv2d.default", "aten.batch_norm.default", "aten.linear.default", "aten.layer_norm.default"}
    assert not {n for n in found if "native" in n or "addmm" in n or "_log_softmax" in n or n == "aten.convolution.default"}


class Spread(nn.Module):
    """Reads the spread that a kernel returns too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        normal, _, spread = torch.native_layer_norm(torch.relu(self.first(x)), (8,), None, None, 1e-5)
        return self.last(normal) * spread  # type: ignore[no-any-return]


def test_kernels_whose_statistics_are_read_stay() -> None:
    graph = normalize(record(Spread(), (TOKENS,))).graph
    assert any(n.target is torch.ops.aten.native_layer_norm.default for n in graph.nodes)
