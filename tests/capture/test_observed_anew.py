"""What is known after a clean-up is what a whole run of the cleaned graph would tell."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from cases import CASES, Case
from secateur.capture import Fact, capture, normalise_inputs, observe
from secateur.capture.normalize import normalize

SOME = ("residual", "fused_qkv", "grouped", "decoder_1d", "language_model")


class WritesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.table.clone().add_(1.0)
        shift[1:3] *= 2.0
        y = self.conv(x).relu_()
        y[:, :2] += x.mean()
        return y * shift.view(1, 4, 1, 1)


def known(value: Any) -> Any:
    """What a node's meta says, in a form that compares values too."""
    if isinstance(value, list):
        return [known(item) for item in value]
    if isinstance(value, Fact):
        return value.shape, value.dtype, None if value.value is None else value.value.tolist()
    return value


def told(graph: fx.Graph) -> dict[str, Any]:
    return {n.name: (known(n.meta["fact"]), n.meta["constant"]) for n in graph.nodes if n.op != "output"}


def agrees(model: nn.Module, inputs: Any, *, graph: bool = False) -> None:
    args, kwargs = normalise_inputs(inputs)
    clean = normalize(capture(model, args, kwargs, graph=graph))
    again = copy.deepcopy(clean.program)
    observe(again, clean.flat_inputs())
    assert told(clean.graph) == told(again.graph)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_clean_up_knows_what_a_run_would_tell(case: Case) -> None:
    agrees(case.model(), case.inputs())


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SOME], ids=str)
def test_so_it_does_for_graphs_with_open_sizes(case: Case) -> None:
    agrees(case.model(), case.inputs(), graph=True)


def test_so_it_does_where_memory_was_written() -> None:
    agrees(WritesInPlace().eval(), torch.randn(2, 3, 5, 5))
