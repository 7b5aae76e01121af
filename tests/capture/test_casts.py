"""Autocast inside a forward is written down as conversions, and the graph computes the same without it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.capture.capture import Capture
from secateur.capture.casts import cast_dtype
from secateur.capture.export import export
from secateur.capture.record import record
from secateur.rewrite import rewrite
from secateur.rewrite.apply import Prefer
from secateur.study import study

aten = torch.ops.aten
WAYS: dict[str, Callable[..., Capture]] = {
    "recorded": record,
    "exported": functools.partial(export, dynamic=False),
    "exported-open": functools.partial(export, dynamic=True),
}


class Mixed(nn.Module):
    """Layers in half precision, one part of them in single precision, and an output in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.inner, self.head = nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.relu(self.depthwise(self.stem(x))).mean((2, 3))
            with torch.autocast("cpu", enabled=False):
                x = torch.tanh(x.float())
            x = self.inner(x)
        return self.head(x.float())


@pytest.mark.parametrize("way", WAYS)
def test_the_graph_computes_what_the_model_computes(way: str) -> None:
    model, x = Mixed().eval(), torch.randn(2, 3, 8, 8)
    capture = WAYS[way](model, (x,))
    (found,) = capture.program(x)
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-5, atol=1e-5)
    layers = [n for n in capture.graph.nodes if n.target in (aten.conv2d.default, aten.linear.default)]
    assert [n.meta["fact"].dtype for n in layers] == [torch.bfloat16] * 3 + [torch.float32]
    assert capture.dynamic == (way == "exported-open")


def test_a_call_without_autocast_has_no_conversion() -> None:
    x, half = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bfloat16)
    assert cast_dtype(aten.mm.default, (x, x), {}, x) is None
    assert cast_dtype(aten.mm.default, (x, x), {}, half) == torch.bfloat16
    assert cast_dtype(aten.mm.default, (x, half), {}, half) == torch.bfloat16
    assert cast_dtype(aten.add.Tensor, (x, half), {}, x) is None
    assert cast_dtype(aten.mm.default, (x.double(), x.double()), {}, half) is None


@pytest.mark.parametrize("prefer", ["module", "graph"])
def test_a_model_with_autocast_is_cut_and_proven(prefer: Prefer) -> None:
    found = study(Mixed().eval(), torch.randn(2, 3, 8, 8))
    assert {g.name for g in found.groups if g.prunable} == {"stem", "inner"}
    result = rewrite(found.cut(found.plan(ratio=0.5)), prefer=prefer)
    assert result.proof.error <= 1e-12
    assert result.model(torch.randn(3, 3, 8, 8)).shape == (3, 4)
