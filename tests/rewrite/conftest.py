"""Graphs with open sizes take half a second to capture, so every model is captured once."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from secateur.capture import Capture, capture
from secateur.rewrite import apply

_CAPTURES: dict[tuple[int, bool], tuple[nn.Module, Capture]] = {}


def _once(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, graph: bool, batch_alone: bool = False) -> Capture:
    key = id(model), batch_alone
    if key not in _CAPTURES:
        _CAPTURES[key] = model, capture(model, args, kwargs, graph=graph, batch_alone=batch_alone)
    return _CAPTURES[key][1]


@pytest.fixture(autouse=True)
def _one_capture_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "capture", _once)
